"""Inference without gradients: everything here works from a notebook, and nothing here knows of HTTP."""
