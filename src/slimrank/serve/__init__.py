"""Compressed models made fast, and taken elsewhere."""
