"""The HTTP API.

`routers/` has the API of gradless. An adapter of another protocol is a router in `contracts/`. Both use the modules
beside them: an endpoint that takes images has a row in the table of `inference.py`, and calls `infer`.
"""
