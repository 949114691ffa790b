"""The numbers an operator watches. Declared here, counted where they happen, served where METRICS_PORT says."""

import math

from prometheus_client import Counter, Gauge, Histogram, start_http_server

from app.settings import Settings

SUBMITTED = Counter("gateway_tasks_submitted_total", "Tasks accepted and charged", ["model"])
ENDED = Counter("gateway_tasks_ended_total", "Tasks that ended", ["model", "outcome"])
TASK_SECONDS = Histogram(
    "gateway_task_seconds",
    "From submit to end",
    ["model"],
    buckets=(1, 5, 10, 20, 30, 45, 60, 90, 120, 180, 300, 600, 1800, 3600),
)
UPSTREAM_ANSWERS = Counter("gateway_upstream_answers_total", "What SEE2AI answered", ["call", "verdict"])
UNKNOWN_STATES = Counter("gateway_upstream_unknown_states_total", "State words nobody has told us about", ["word"])
SUSPECTED_ORPHANS = Counter("gateway_suspected_orphans_total", "Submits SEE2AI may have accepted unheard")
FENCED_WRITES = Counter("gateway_stale_writes_total", "Outcomes dropped because another visit was first", ["step"])
TASK_STEP_ERRORS = Counter("gateway_visit_faults_total", "Visits that raised", ["step"])
WAKEUPS_FAILED = Counter("gateway_bells_lost_total", "Bells Redis did not take; the sweep finds these tasks")
BREAKER_OPEN = Gauge("gateway_circuit_open", "1 while it refuses our key or our purse, as all know", ["provider"])
SUBMITS_REFUSED = Counter("gateway_submits_refused_total", "Submits that could only wait in vain", ["provider"])
SEE2AI_REACHABLE = Gauge("gateway_see2ai_reachable", "1 while SEE2AI answers this API process; nobody asked yet: NaN")
SEE2AI_BALANCE = Gauge("gateway_see2ai_balance_tokens", "Our purse at SEE2AI; 50000 are RMB 1; unknown: NaN")
OPEN_STREAMS = Gauge("gateway_streams_open", "Callers that are told of their tasks as they change", ["kind"])
EVENTS = Counter("gateway_stream_events_total", "Changes of tasks told", ["kind"])
SLOW_CONSUMERS = Counter("gateway_stream_slow_consumers_total", "Streams ended because nobody read them", ["kind"])
WEBHOOKS = Counter("gateway_webhooks_total", "Attempts to tell a receiver of a task's end", ["outcome"])
WEBHOOKS_DISABLED = Counter("gateway_webhooks_disabled_total", "Endpoints that are told no longer", ["reason"])
WEBHOOKS_OVERDUE = Gauge("gateway_webhooks_overdue_seconds", "How long the longest due attempt waits for a hand")
AUDIT_VIOLATIONS = Gauge("gateway_audit_violations", "What the newest audit found; none yet: NaN")
AUDIT_AGE = Gauge("gateway_audit_age_seconds", "Since the newest audit, whoever ran it; none yet: NaN")
SEE2AI_REACHABLE.set(math.nan)
SEE2AI_BALANCE.set(math.nan)
AUDIT_VIOLATIONS.set(math.nan)
AUDIT_AGE.set(math.nan)


def serve_metrics(settings: Settings) -> None:
    """Prometheus text on its own port, away from callers; 0 is off."""
    if settings.metrics_port:
        start_http_server(settings.metrics_port, addr=settings.host)
