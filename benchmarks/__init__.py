"""Benchmarks of gradless and other servers: `python -m benchmarks`, or `make bench`. See README.md here."""
