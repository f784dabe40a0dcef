"""Where a run's weights, moments and finished pieces live: in memory, or on disk a block at a time."""
