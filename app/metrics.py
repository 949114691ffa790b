"""The numbers an operator watches. Declared here, counted where they happen, served where METRICS_PORT says."""

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
STALE_WRITES = Counter("gateway_stale_writes_total", "Outcomes dropped because another visit was first", ["step"])
VISIT_FAULTS = Counter("gateway_visit_faults_total", "Visits that raised", ["step"])
BELLS_LOST = Counter("gateway_bells_lost_total", "Bells Redis did not take; the sweep finds these tasks")
CIRCUIT_OPEN = Gauge("gateway_circuit_open", "1 while SEE2AI refuses our key or our purse")


def serve_metrics(settings: Settings) -> None:
    """Prometheus text on its own port, away from callers; 0 is off."""
    if settings.metrics_port:
        start_http_server(settings.metrics_port, addr=settings.host)
