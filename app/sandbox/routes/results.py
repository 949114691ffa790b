"""The results behind signed, expiring URLs, and every fault that such a URL may have."""

from functools import partial

import anyio.to_thread
from fastapi import APIRouter, Request
from starlette.responses import Response

from app.sandbox.error_responses import error_response
from app.sandbox.faults.faulty_responses import failure_response
from app.sandbox.faults.misbehaviour import misbehave
from app.sandbox.faults.padding import PaddedVideo
from app.sandbox.jobs.job import Job
from app.sandbox.jobs.result_urls import ResultUnavailable, find_job, get_result
from app.sandbox.media.images import pixel_bomb
from app.sandbox.media.render import MEDIA_TYPES, render, render_webp
from app.sandbox.routes.fault_matching import match_fault
from app.sandbox.rules.rule import FaultRule
from app.sandbox.state import SandboxState, get_entry, get_state

HEADERS = {"x-content-type-options": "nosniff", "cache-control": "private, max-age=3600"}
HTML_PAGE = b"<!doctype html><html><body><script>alert(1)</script><p>Please sign in.</p></body></html>"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script><circle r="32"/></svg>'

result_routes = APIRouter()


@result_routes.api_route("/results/{name}", methods=["GET", "HEAD"])
async def read_result(request: Request, name: str, expires: str = "", signature: str = "") -> Response:
    """The result `name` until `expires` (Unix seconds); 403 once that is over, or for a wrong signature."""
    state, entry = get_state(request), get_entry(request)
    entry.outcome = "refused"
    job = find_job(state.jobs, name)
    if job is not None:
        entry.task_id, entry.action = job.task_id, job.action
    rule = await match_fault(request, "result", state.control, *([job.rules] if job else []))
    if rule is not None and rule.kind == "fail":
        return failure_response(rule)
    try:
        job, index = get_result(state.jobs, state.signing_secret, name, expires, signature)
        response = await _respond(job, index, rule, state)
    except ResultUnavailable as error:
        return error_response(error.code, str(error))
    entry.outcome = "served"
    return response


async def _respond(job: Job, index: int, rule: FaultRule | None, state: SandboxState) -> Response:
    fault, media_type = rule.fault if rule else None, MEDIA_TYPES[job.media.output_format]
    if fault in {"not-an-image", "svg", "empty", "pixel-bomb"}:
        return _false_result(fault, media_type)
    make = render_webp if fault == "webp" else partial(render, index=index)
    try:
        body = await anyio.to_thread.run_sync(make, job.media, limiter=state.draw_limiter)
    except FileNotFoundError:
        raise ResultUnavailable(404, "Not found") from None  # the file store has removed it
    if fault == "webp":
        media_type = MEDIA_TYPES["webp"]
    elif rule is not None and fault == "content-type":
        media_type = rule.media_type
    headers = {**HEADERS, "content-type": media_type}
    response = Response(body, headers=headers)
    if job.scenario.size_bytes is not None and fault != "webp":
        response = PaddedVideo(body, job.scenario.size_bytes, headers)
    return response if rule is None else misbehave(rule, response)


def _false_result(fault: str, media_type: str) -> Response:
    bodies = {"not-an-image": HTML_PAGE, "svg": SVG, "empty": b"", "pixel-bomb": pixel_bomb()}
    true_types = {"not-an-image": "text/html", "svg": "image/svg+xml", "pixel-bomb": "image/png"}
    return Response(bodies[fault], headers={**HEADERS, "content-type": true_types.get(fault, media_type)})
