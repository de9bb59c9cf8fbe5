"""Classifiers, cut at their heads, and the architectures they are built from."""
