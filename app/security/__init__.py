"""API keys and CORS origins."""
