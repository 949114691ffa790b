"""The results behind signed, expiring URLs, and every way in which such a URL may disappoint."""

import hashlib
import hmac
import re
from functools import partial
from urllib.parse import parse_qs, urlsplit

import anyio
import anyio.to_thread
from fastapi import APIRouter, Request
from starlette.responses import Response

from app.sandbox import clock
from app.sandbox.answers import fail
from app.sandbox.desk import Desk, get_desk, get_entry, get_origin
from app.sandbox.jobs import Job, look_at, next_trouble
from app.sandbox.large import Padded
from app.sandbox.pictures import pixel_bomb
from app.sandbox.plan import Trouble
from app.sandbox.refusals import refusal
from app.sandbox.trouble import misbehave
from app.sandbox.works import MEDIA_TYPES, render, render_webp

NAME = re.compile(r"(?P<task_id>[0-9a-f]{32})-(?P<index>\d{1,2})\.(?P<ending>jpg|jpeg|png|mp4)")
NOSNIFF = {"x-content-type-options": "nosniff", "cache-control": "private, max-age=3600"}
PAGE = b"<!doctype html><html><body><script>alert(1)</script><p>Please sign in.</p></body></html>"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script><circle r="32"/></svg>'

results = APIRouter()


class _NotServed(Exception):
    """The URL gives nothing: its status code and the reason."""

    def __init__(self, code: int, reason: str) -> None:
        self.code = code
        super().__init__(reason)


@results.api_route("/results/{name}", methods=["GET", "HEAD"])
async def read_result(request: Request, name: str, expires: str = "", signature: str = "") -> Response:
    """The result `name` until `expires` (Unix seconds); 403 once that is over, or for a wrong signature."""
    desk, entry = get_desk(request), get_entry(request)
    entry.outcome = "refused"
    job = _job_of(desk, name)
    if job is not None:
        entry.task_id, entry.action = job.task_id, job.action
    delay_seconds, trouble = desk.control.strike("result", entry.action)
    await anyio.sleep(delay_seconds)
    if trouble is None and job is not None:
        trouble = next_trouble(job.plan.troubles, "result", job.used)
    if trouble is not None:
        entry.trouble = trouble.name
        if trouble.kind == "fail":
            return fail(trouble)
    try:
        job, index = _find(desk, name, expires, signature)
        answer = await _serve(job, index, trouble, desk)
    except _NotServed as error:
        return refusal(error.code, str(error))
    entry.outcome = "served"
    return answer


def sign_urls(request: Request, job: Job, live_seconds: float) -> list[str]:
    """One URL per result of the job, good for so long or for the seconds its plan says."""
    desk = get_desk(request)
    if job.plan.foreign_url:
        return [job.plan.foreign_url] * job.plan.images
    if job.plan.expires_seconds is not None:
        live_seconds = job.plan.expires_seconds
    expires = f"{clock.as_wall(clock.now()) + live_seconds:.3f}"
    names = [f"{job.task_id}-{index}.{job.work.output_format}" for index in range(job.plan.images)]
    return [
        f"{get_origin(request)}/results/{name}?expires={expires}&signature={_sign(desk.signing_secret, name, expires)}"
        for name in names
    ]


async def read_own_result(desk: Desk, url: str) -> bytes | None:
    """What this result URL of our own leads to, without any trouble; None where it leads nowhere."""
    parts = urlsplit(url)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    name = parts.path.rpartition("/")[2]
    try:
        job, index = _find(desk, name, query.get("expires", ""), query.get("signature", ""))
        return bytes((await _serve(job, index, None, desk)).body)
    except _NotServed:
        return None


def _job_of(desk: Desk, name: str) -> Job | None:
    parsed = NAME.fullmatch(name)
    return desk.jobs.find(parsed["task_id"]) if parsed else None


def _find(desk: Desk, name: str, expires: str, signature: str) -> tuple[Job, int]:
    if not hmac.compare_digest(signature.encode(), _sign(desk.signing_secret, name, expires).encode()):
        raise _NotServed(403, "Invalid signature")
    if float(expires) < clock.as_wall(clock.now()):
        raise _NotServed(403, "URL expired")
    parsed, job = NAME.fullmatch(name), _job_of(desk, name)
    if parsed is None or job is None or not look_at(job, clock.now()).has_succeeded:
        raise _NotServed(404, "Not found")
    return job, int(parsed["index"])


def _sign(secret: str, name: str, expires: str) -> str:
    return hmac.new(secret.encode(), f"{name}\n{expires}".encode(), hashlib.sha256).hexdigest()


async def _serve(job: Job, index: int, trouble: Trouble | None, desk: Desk) -> Response:
    kind, media_type = trouble.kind if trouble else "", MEDIA_TYPES[job.work.output_format]
    if kind in {"not-an-image", "svg", "empty", "pixel-bomb"}:
        return _false_result(kind, media_type)
    make = render_webp if kind == "webp" else partial(render, index=index)
    try:
        body = await anyio.to_thread.run_sync(make, job.work, limiter=desk.pens)
    except FileNotFoundError:
        raise _NotServed(404, "Not found") from None  # the shelf has let go of it
    if kind == "webp":
        media_type = MEDIA_TYPES["webp"]
    elif trouble is not None and kind == "content-type":
        media_type = trouble.text
    headers = {**NOSNIFF, "content-type": media_type}
    whole = job.plan.size_bytes is not None and kind != "webp"
    answer = Padded(body, job.plan.size_bytes or 0, headers) if whole else Response(body, headers=headers)
    return answer if trouble is None else misbehave(trouble, answer)


def _false_result(kind: str, media_type: str) -> Response:
    bodies = {"not-an-image": PAGE, "svg": SVG, "empty": b"", "pixel-bomb": pixel_bomb()}
    honest = {"not-an-image": "text/html", "svg": "image/svg+xml", "pixel-bomb": "image/png"}
    return Response(bodies[kind], headers={**NOSNIFF, "content-type": honest.get(kind, media_type)})
