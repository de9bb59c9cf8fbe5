"""One image from its bytes to its answer."""
