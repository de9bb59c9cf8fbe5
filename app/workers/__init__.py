"""The service as several processes: fronts, each with the whole application, and one that has the models."""
