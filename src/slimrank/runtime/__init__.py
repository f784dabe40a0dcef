"""Processes, memory limits, progress and timing; nothing here knows the method."""
