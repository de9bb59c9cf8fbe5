"""Several processes that read and decode, workers, for one that runs the forwards: pixels and answers in memory that
they share, everything else by sockets between them."""
