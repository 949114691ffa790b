"""Telemetry for operators: structured logs and Prometheus metrics."""
