"""Scenarios of misbehaving clients and failing processes against real servers, each held to bars.

`python -m reliability` runs them in turn; `python -m reliability.soak` runs all kinds of clients at once.
"""
