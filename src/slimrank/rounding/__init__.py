"""Weights rounded to few bits: pure functions of a weight, the Grams that weigh its error, and a grid."""
