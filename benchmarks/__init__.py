"""gradless measured beside other servers: `python -m benchmarks`, or `make bench`. See README.md here."""
