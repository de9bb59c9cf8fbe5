"""Nearest neighbours of feature vectors: an index built from a features file, opened by the service and the command.

Needs the extra `search`. What the service imports of it, `index` and `manifest`, needs no torch.
"""
