"""What strikes when: a schedule drawn from a seed, so that the same storm can be had again."""

import random
from dataclasses import dataclass

# How often each fault is drawn, against the others.
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

# Which share of what SEE2AI is asked for goes wrong while the storm lasts: 30 % at each place.
TROUBLE: tuple[tuple[str, float], ...] = (
    ("submit fail 500", 0.05),
    ("submit fail 503 retry-after 1", 0.05),
    ("submit fail 429 retry-after 2", 0.06),
    ("submit hang 4", 0.04),
    ("submit reset", 0.025),
    ("submit malformed", 0.02),
    ("submit html", 0.01),
    ("submit no-task-id", 0.01),
    ("submit reuse-task-id", 0.01),
    ("submit fail 400", 0.015),
    ("submit fail 504", 0.01),
    ("poll fail 500", 0.05),
    ("poll fail 503", 0.05),
    ("poll fail 404", 0.03),
    ("poll fail 429 retry-after 1", 0.01),
    ("poll hang 5", 0.03),
    ("poll reset", 0.04),
    ("poll malformed", 0.03),
    ("poll html", 0.03),
    ("poll wrong-task-id", 0.03),
    ("result fail 404", 0.05),
    ("result fail 503", 0.05),
    ("result reset", 0.05),
    ("result truncated", 0.05),
    ("result not-an-image", 0.04),
    ("result hang 5", 0.03),
    ("result empty", 0.03),
    ("upload fail 500", 0.15),
    ("upload reset", 0.15),
)


@dataclass(frozen=True, slots=True)
class Strike:
    """One fault: when it strikes, on the how-manieth of its like, and for how long where it lasts."""

    at_seconds: float
    fault: str
    place: int
    lasting_seconds: float


def draw(seed: int, seconds: float, *, gap_seconds: float, lease_seconds: float) -> list[Strike]:
    """The schedule: first every fault once, in a random order, then by weight. Each seed has one of its own."""
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
    """The trouble as the sandbox takes it. The first rule that strikes decides, so each share is of what is left."""
    rules: list[dict[str, object]] = []
    left: dict[str, float] = {}
    for marker, share in TROUBLE:
        where = marker.split()[0]
        here = left.get(where, 1.0)
        rules.append({"marker": marker, "share": share / here})
        left[where] = here - share
    return rules
