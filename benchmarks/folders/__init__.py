"""`gradless features` over a folder, compared with a hand-written loop, the service, and decode and forward in one
process."""
