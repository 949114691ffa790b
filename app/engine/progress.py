"""Estimates of progress, from how long a model's tasks typically take."""

import math
from dataclasses import replace

from app.engine.state import ClaimedTask, Release
from app.engine.transitions import PROGRESS_CEILING, job_seconds


def with_estimate(task: ClaimedTask, release: Release, typical_seconds: float) -> Release:
    """While the upstream works and reports no progress, the gateway estimates it."""
    if task.step != "poll" or release.upstream_state.has_own_progress:
        return release
    return replace(release, progress=max(release.progress, estimate_progress(job_seconds(task), typical_seconds)))


def estimate_progress(age_seconds: float, typical_seconds: float) -> int:
    """Percent. At half of the typical time it is about 60; it never passes the ceiling."""
    return min(int(PROGRESS_CEILING * (1 - math.exp(-2 * max(age_seconds, 0) / typical_seconds))), PROGRESS_CEILING)


def estimate_seconds_left(progress: int, age_seconds: float, typical_seconds: float) -> int:
    """What `progress` leaves of the typical time, less the time since that progress was written. 0: any moment."""
    return math.ceil(max(typical_seconds * (100 - progress) / 100 - max(age_seconds, 0), 0))
