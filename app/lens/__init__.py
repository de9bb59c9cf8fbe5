"""The lens towards its users: over HTTP, as JSON or as events, and on the command line, as a table or a page."""
