"""What an operator sees of gradless: dashboards as code, a real Prometheus over a real server, and traffic of every
kind. `make observe` runs it all; the tests in tests/observability hold it to what the real Prometheus answers."""
