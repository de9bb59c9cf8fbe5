"""The process: logs, interpreter tuning, exit."""
