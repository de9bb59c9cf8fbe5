"""What concerns the process: logs, listening socket, garbage collector, its end."""
