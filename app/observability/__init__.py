"""One record per request, reported as log line, metrics and trace."""
