"""Storage of a run's weights, moments and finished work: in memory, or on disk a block at a time."""
