"""Admission, batching and cancellation of images: the standard library alone."""
