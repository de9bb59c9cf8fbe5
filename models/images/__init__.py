"""Image files to pixels: formats, cost limits, decoding, and the threads and processes that decode."""
