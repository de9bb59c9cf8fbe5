"""Models as they are served: instances, the registry, loading and unloading, supervision."""
