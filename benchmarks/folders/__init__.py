"""`gradless features` over a folder, beside the loop that people write by hand, the service, and what decode and
forward alone give in one process."""
