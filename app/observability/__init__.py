"""One record per request, and what is made of it: log lines, metrics, traces."""
