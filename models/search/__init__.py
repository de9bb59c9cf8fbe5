"""Nearest neighbours of feature vectors: build an index from a features file, and query it.

Needs the extra `search`. The server imports `index`, which needs no torch.
"""
