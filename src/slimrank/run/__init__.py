"""Whole runs, compress and compare: their steps, estimates, results and resuming."""
