"""Batching, fairness and threads: the standard library alone."""
