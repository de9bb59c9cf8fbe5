"""HTTP: requests in, responses out. Nothing in here imports torch."""
