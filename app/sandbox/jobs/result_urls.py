"""The signed, expiring URLs of results: how they are made, and what each of them leads to."""

import hashlib
import hmac
import re

from app.sandbox import clock
from app.sandbox.jobs.job import Job, status_at
from app.sandbox.jobs.job_store import JobStore

NAME = re.compile(r"(?P<task_id>[0-9a-f]{32})-(?P<index>\d{1,2})\.(?P<extension>jpg|jpeg|png|mp4)")


class ResultUnavailable(Exception):
    """The URL leads to no result: its status code and the reason."""

    def __init__(self, code: int, reason: str) -> None:
        self.code = code
        super().__init__(reason)


def sign_urls(job: Job, lifetime_seconds: float, *, origin: str, secret: str) -> list[str]:
    """One URL per result of the job. Its scenario may set another lifetime, or another URL."""
    scenario = job.scenario
    if scenario.result_url:
        return [scenario.result_url] * scenario.result_count
    if scenario.result_lifetime_seconds is not None:
        lifetime_seconds = scenario.result_lifetime_seconds
    expires = f"{clock.to_unix(clock.now()) + lifetime_seconds:.3f}"
    names = [f"{job.task_id}-{index}.{job.media.output_format}" for index in range(scenario.result_count)]
    return [f"{origin}/results/{name}?expires={expires}&signature={_sign(secret, name, expires)}" for name in names]


def find_job(jobs: JobStore, name: str) -> Job | None:
    """The job that a result of this name belongs to."""
    parsed = NAME.fullmatch(name)
    return jobs.find(parsed["task_id"]) if parsed else None


def get_result(jobs: JobStore, secret: str, name: str, expires: str, signature: str) -> tuple[Job, int]:
    """The job and which of its results the URL leads to. Raises ResultUnavailable."""
    if not hmac.compare_digest(signature.encode(), _sign(secret, name, expires).encode()):
        raise ResultUnavailable(403, "Invalid signature")
    if float(expires) < clock.to_unix(clock.now()):
        raise ResultUnavailable(403, "URL expired")
    parsed, job = NAME.fullmatch(name), find_job(jobs, name)
    if parsed is None or job is None or not status_at(job, clock.now()).has_succeeded:
        raise ResultUnavailable(404, "Not found")
    return job, int(parsed["index"])


def _sign(secret: str, name: str, expires: str) -> str:
    return hmac.new(secret.encode(), f"{name}\n{expires}".encode(), hashlib.sha256).hexdigest()
