"""Declares the Prometheus metrics. Other modules count them; `serve_metrics` exposes them on METRICS_PORT."""

import math

from prometheus_client import Counter, Gauge, Histogram, start_http_server

from app.settings import Settings

SUBMITTED = Counter("gateway_tasks_submitted_total", "Tasks accepted and charged", ["model"])
ENDED = Counter("gateway_tasks_ended_total", "Tasks that ended", ["model", "outcome"])
TASK_SECONDS = Histogram(
    "gateway_task_seconds",
    "Seconds from the submit of a task to its end",
    ["model"],
    buckets=(1, 5, 10, 20, 30, 45, 60, 90, 120, 180, 300, 600, 1800, 3600),
)
UPSTREAM_ANSWERS = Counter("gateway_upstream_answers_total", "Responses of SEE2AI", ["call", "result"])
UNKNOWN_STATES = Counter("gateway_upstream_unknown_states_total", "Task states unknown to the gateway", ["state"])
SUSPECTED_ORPHANS = Counter("gateway_suspected_orphans_total", "Failed submits that SEE2AI may have accepted")
FENCED_WRITES = Counter("gateway_fenced_writes_total", "Results dropped because another worker had the task", ["step"])
TASK_STEP_ERRORS = Counter("gateway_task_step_errors_total", "Task steps that raised an exception", ["step"])
WAKEUPS_FAILED = Counter("gateway_wakeups_failed_total", "Worker wakeups that Redis did not accept")
BREAKER_OPEN = Gauge("gateway_breaker_open", "1 while the provider's circuit breaker is open", ["provider"])
SUBMITS_REFUSED = Counter("gateway_submits_refused_total", "Submits refused because the breaker is open", ["provider"])
SEE2AI_REACHABLE = Gauge("gateway_see2ai_reachable", "1 while SEE2AI answers; NaN before the first call")
SEE2AI_BALANCE = Gauge("gateway_see2ai_balance_tokens", "Our balance; 50000 tokens are RMB 1; NaN if unknown")
OPEN_STREAMS = Gauge("gateway_streams_open", "Open WebSocket and SSE streams", ["kind"])
EVENTS = Counter("gateway_stream_events_total", "Task events sent to streams", ["kind"])
SLOW_CONSUMERS = Counter("gateway_stream_slow_consumers_total", "Streams closed for slow reading", ["kind"])
CONNECTIONS_REFUSED = Counter("gateway_connections_refused_total", "Connections that the server ended", ["reason"])
WEBHOOKS = Counter("gateway_webhooks_total", "Webhook delivery attempts", ["outcome"])
WEBHOOKS_DISABLED = Counter("gateway_webhooks_disabled_total", "Webhook endpoints disabled", ["reason"])
WEBHOOKS_OVERDUE = Gauge("gateway_webhooks_overdue_seconds", "Age of the oldest due webhook attempt")
AUDIT_VIOLATIONS = Gauge("gateway_audit_violations", "Violations that the newest audit found; NaN before the first")
AUDIT_AGE = Gauge("gateway_audit_age_seconds", "Seconds since the newest audit of any process; NaN before the first")
SEE2AI_REACHABLE.set(math.nan)
SEE2AI_BALANCE.set(math.nan)
AUDIT_VIOLATIONS.set(math.nan)
AUDIT_AGE.set(math.nan)


def serve_metrics(settings: Settings) -> None:
    """Serves the metrics as Prometheus text on a port of their own. Port 0 means off."""
    if settings.metrics_port:
        start_http_server(settings.metrics_port, addr=settings.host)
