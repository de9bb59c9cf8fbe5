"""The HTTP API: routes, uploads, schemas, OpenAPI, errors."""
