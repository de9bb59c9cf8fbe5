"""The uvicorn server, its connections and the acceptor."""
