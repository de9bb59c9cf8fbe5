"""The routes that accept images, in all protocols: dashboards, recording rules and alerts count requests of these."""

from __future__ import annotations

# Values of the label `route`. The page also has `/`, by another method.
IMAGE_ROUTES = (
    "/v1/classify",
    "/v1/features",
    "/v1/predict",
    "/v1/search",
    "/v1/embeddings",
    "/v1/models/{name}:predict",
    "/v2/models/{name}/infer",
    "/inference.GRPCInferenceService/ModelInfer",
    "/predictions/{name}",
    "/invocations",
    "/hf/{name}",
    "/",
)

# A selector of these in PromQL, whose regular expressions match whole values.
SELECTOR = 'route=~"{}"'.format("|".join(IMAGE_ROUTES).replace("{name}", ".+"))
