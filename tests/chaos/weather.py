"""Which fault happens when: a schedule drawn from a seed, so a storm can be repeated."""

import random
from dataclasses import dataclass

# How often each fault is drawn, relative to the others.
WEIGHTS: dict[str, int] = {
    "worker: kill -9": 24,
    "worker: SIGTERM": 12,
    "worker: frozen past its lease": 16,
    "api: kill -9": 14,
    "api: SIGTERM": 7,
    "api: frozen": 6,
    "redis: flushed": 8,
    "redis: kill -9, back empty": 6,
    "redis: frozen": 4,
    "database: restarted": 3,
    "database: kill -9": 5,
    "database: frozen": 4,
    "storage: kill -9": 4,
    "see2ai: frozen": 3,
    "see2ai: purse empty": 3,
    "all of ours: kill -9": 2,
}

# The share of SEE2AI's answers that fail during the storm: 30 % for each kind of request.
TROUBLE: tuple[tuple[dict[str, object], float], ...] = (
    ({"where": "submit", "fail": 500}, 0.05),
    ({"where": "submit", "fail": 503, "retry_after": 1}, 0.05),
    ({"where": "submit", "fail": 429, "retry_after": 2}, 0.06),
    ({"where": "submit", "fault": "hang", "seconds": 4}, 0.04),
    ({"where": "submit", "fault": "reset"}, 0.025),
    ({"where": "submit", "fault": "malformed"}, 0.02),
    ({"where": "submit", "fault": "html"}, 0.01),
    ({"where": "submit", "fault": "no-task-id"}, 0.01),
    ({"where": "submit", "fault": "reuse-task-id"}, 0.01),
    ({"where": "submit", "fail": 400}, 0.015),
    ({"where": "submit", "fail": 504}, 0.01),
    ({"where": "poll", "fail": 500}, 0.05),
    ({"where": "poll", "fail": 503}, 0.05),
    ({"where": "poll", "fail": 404}, 0.03),
    ({"where": "poll", "fail": 429, "retry_after": 1}, 0.01),
    ({"where": "poll", "fault": "hang", "seconds": 5}, 0.03),
    ({"where": "poll", "fault": "reset"}, 0.04),
    ({"where": "poll", "fault": "malformed"}, 0.03),
    ({"where": "poll", "fault": "html"}, 0.03),
    ({"where": "poll", "fault": "wrong-task-id"}, 0.03),
    ({"where": "result", "fail": 404}, 0.05),
    ({"where": "result", "fail": 503}, 0.05),
    ({"where": "result", "fault": "reset"}, 0.05),
    ({"where": "result", "fault": "truncated"}, 0.05),
    ({"where": "result", "fault": "not-an-image"}, 0.04),
    ({"where": "result", "fault": "hang", "seconds": 5}, 0.03),
    ({"where": "result", "fault": "empty"}, 0.03),
    ({"where": "upload", "fail": 500}, 0.15),
    ({"where": "upload", "fault": "reset"}, 0.15),
)


@dataclass(frozen=True, slots=True)
class Strike:
    """One fault: its time, the index of its target among targets of the same kind, and its duration, if it has one."""

    at_seconds: float
    fault: str
    place: int
    lasting_seconds: float


def draw(seed: int, seconds: float, *, gap_seconds: float, lease_seconds: float) -> list[Strike]:
    """The schedule of a seed: every fault once in a random order, then more faults by weight."""
    chance = random.Random(f"weather {seed}")
    first = list(WEIGHTS)
    chance.shuffle(first)
    strikes, at = [], 2.0
    while at < seconds:
        fault = first.pop() if first else chance.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        lasting = chance.uniform(1.0, 6.0)
        if "lease" in fault:
            lasting += lease_seconds
        strikes.append(Strike(round(at, 2), fault, chance.randrange(100), round(lasting, 2)))
        at += chance.expovariate(1 / gap_seconds)
    return strikes


def rules() -> list[dict[str, object]]:
    """The sandbox's rules. The first rule that applies decides, so each share is of the requests that are left."""
    rules: list[dict[str, object]] = []
    left: dict[str, float] = {}
    for rule, share in TROUBLE:
        where = str(rule["where"])
        here = left.get(where, 1.0)
        rules.append({**rule, "probability": share / here})
        left[where] = here - share
    return rules
