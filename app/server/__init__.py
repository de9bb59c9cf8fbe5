"""uvicorn, and what is changed of it."""
