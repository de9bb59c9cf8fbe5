"""Nearest neighbours of feature vectors: an index built from a features file, opened by the service and the command.

Needs the extra `search`. Nothing here but `thumbnails` imports torch.
"""
