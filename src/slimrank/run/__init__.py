"""Whole runs: compress, compare, what they keep, and what they say of themselves."""
