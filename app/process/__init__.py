"""The process: logs, listening socket, interpreter tuning, exit."""
