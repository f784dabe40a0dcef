"""What runs the machine: processes, threads, memory, progress."""
