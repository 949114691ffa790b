"""The pictures behind signed, expiring URLs, and every way in which such a URL may disappoint."""

import hashlib
import hmac
import re

import anyio
import anyio.to_thread
from fastapi import APIRouter, Request
from starlette.responses import Response

from app.sandbox import clock
from app.sandbox.desk import get_desk, get_entry
from app.sandbox.jobs import Job, look_at, next_trouble
from app.sandbox.markers import Trouble
from app.sandbox.pictures import Picture, draw, pixel_bomb
from app.sandbox.trouble import misbehave
from app.sandbox.wire import refusal

NAME = re.compile(r"(?P<task_id>[0-9a-f]{32})-(?P<index>\d{1,2})\.(?P<ending>jpg|jpeg|png)")
MEDIA_TYPES = {"jpg": "image/jpeg", "jpeg": "image/jpeg", "png": "image/png", "webp": "image/webp"}
NOSNIFF = {"x-content-type-options": "nosniff", "cache-control": "private, max-age=3600"}
PAGE = b"<!doctype html><html><body><script>alert(1)</script><p>Please sign in.</p></body></html>"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script><circle r="32"/></svg>'

results = APIRouter()


@results.api_route("/results/{name}", methods=["GET", "HEAD"])
async def read_result(request: Request, name: str, expires: str = "", signature: str = "") -> Response:
    """The picture `name` until `expires` (Unix seconds); 403 once that is over, or for a wrong signature."""
    desk, entry = get_desk(request), get_entry(request)
    entry.outcome = "refused"
    delay_seconds, trouble = desk.control.strike("result")
    await anyio.sleep(delay_seconds)
    parsed = NAME.fullmatch(name)
    job = desk.jobs.find(parsed["task_id"]) if parsed else None
    entry.task_id = job.task_id if job else None
    if trouble is None and job is not None:
        trouble = next_trouble(job.plan.troubles, "result", job.used)
    if trouble is not None:
        entry.trouble = trouble.name
        if trouble.kind == "fail":
            return refusal(trouble.code, trouble.text, form=trouble.detail)
    if not hmac.compare_digest(signature.encode(), _sign(desk.signing_secret, name, expires).encode()):
        return refusal(403, "Invalid signature")
    if float(expires) < clock.as_wall(clock.now()):
        return refusal(403, "URL expired")
    if parsed is None or job is None or not look_at(job, clock.now()).has_succeeded:
        return refusal(404, "Not found")
    entry.outcome = "served"
    return await _serve(job, int(parsed["index"]), trouble, desk.pens)


def sign_urls(request: Request, job: Job) -> list[str]:
    """One URL per picture of the job, good for the hour or for the seconds its plan says."""
    desk = get_desk(request)
    if job.plan.foreign_url:
        return [job.plan.foreign_url] * job.plan.images
    origin = desk.public_url or str(request.base_url).rstrip("/")
    expires = f"{clock.as_wall(clock.now()) + job.plan.expires_seconds:.3f}"
    names = [f"{job.task_id}-{index}.{job.output_format}" for index in range(job.plan.images)]
    return [
        f"{origin}/results/{name}?expires={expires}&signature={_sign(desk.signing_secret, name, expires)}"
        for name in names
    ]


def _sign(secret: str, name: str, expires: str) -> str:
    return hmac.new(secret.encode(), f"{name}\n{expires}".encode(), hashlib.sha256).hexdigest()


async def _serve(job: Job, index: int, trouble: Trouble | None, pens: anyio.CapacityLimiter) -> Response:
    if trouble is not None and trouble.kind in {"not-an-image", "svg", "empty", "pixel-bomb"}:
        return _false_picture(trouble.kind, MEDIA_TYPES[job.output_format])
    output_format = "webp" if trouble is not None and trouble.kind == "webp" else job.output_format
    references = f" · {job.references} ref" if job.references else ""
    picture = Picture(
        text=job.text,
        digest=job.prompt_digest,
        label=f"{job.task_id} · {job.aspect_ratio} · {job.resolution} · {output_format}{references}",
        aspect_ratio=job.aspect_ratio,
        resolution=job.resolution,
        output_format=output_format,
        index=index,
    )
    body = await anyio.to_thread.run_sync(draw, picture, limiter=pens)
    media_type = MEDIA_TYPES[output_format]
    if trouble is not None and trouble.kind == "content-type":
        media_type = trouble.text
    answer = Response(body, headers={**NOSNIFF, "content-type": media_type})
    return answer if trouble is None else misbehave(trouble, answer)


def _false_picture(kind: str, media_type: str) -> Response:
    bodies = {"not-an-image": PAGE, "svg": SVG, "empty": b"", "pixel-bomb": pixel_bomb()}
    honest = {"not-an-image": "text/html", "svg": "image/svg+xml", "pixel-bomb": "image/png"}
    return Response(bodies[kind], headers={**NOSNIFF, "content-type": honest.get(kind, media_type)})
