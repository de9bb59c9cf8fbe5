"""Parts of HTTP that every layer above uses."""
