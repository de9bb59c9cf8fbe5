"""What `app` may know of inference: errors, results, telemetry, limits, cancellation, the runtime. Without torch."""
