"""Image files to pixels: what a file may cost, decoding it, and the threads and processes that do so."""
