"""The HTTP API.

`routers/` has the API of gradless. Routers use the modules beside them: an endpoint that takes images has a row in the
table of `inference.py`, and calls `infer`. An adapter of another protocol belongs in a folder beside `routers/`.
"""
