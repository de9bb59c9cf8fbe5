"""The interface of the inference side: runtime, requests, results, errors, limits, telemetry. It needs no torch."""
