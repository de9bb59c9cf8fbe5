"""Observability for operators: dashboards as code, and `make observe`, which runs a real Prometheus and traffic of
every kind against a real server. tests/observability checks every expression against that Prometheus."""
