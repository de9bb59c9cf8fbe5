"""The server and the commands. What answers requests imports no torch."""
