"""Estimates of a task's progress, from how long the tasks of its model typically take."""

import math

PROGRESS_CEILING = 95  # percent, of a task whose result is not stored yet


def estimate_progress(age_seconds: float, typical_seconds: float) -> int:
    """Percent. At half of the typical time it is about 60; it never passes the ceiling."""
    return min(int(PROGRESS_CEILING * (1 - math.exp(-2 * max(age_seconds, 0) / typical_seconds))), PROGRESS_CEILING)


def estimate_seconds_left(progress: int, age_seconds: float, typical_seconds: float) -> int:
    """What `progress` leaves of the typical time, less the time since that progress was written. 0: any moment."""
    return math.ceil(max(typical_seconds * (100 - progress) / 100 - max(age_seconds, 0), 0))
