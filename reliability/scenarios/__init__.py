"""Scenarios: each a load on a server of its own, and the bars that it is held to."""
