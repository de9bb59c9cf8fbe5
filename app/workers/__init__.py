"""The service as several processes: workers, each with the whole application, and one that has the models."""
