"""Batching and fairness, without torch."""
