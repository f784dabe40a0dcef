"""Triton kernels for up to 64 tokens at a time, and the operator that launches them."""
