"""`gradless serve` as several processes: HTTP workers, each with the whole application, and the engine process."""
