"""What must be done before SEE2AI can be asked for the job itself; each visit does one of these things.

An `auto` ratio is settled by the first reference's own. Files that only we can serve are handed to SEE2AI's storage.
Reference pictures are normalized where the model's row wants it. All of it may be repeated after a crash: the job
itself is asked for once, later. But SEE2AI is paid for a normalized picture, so that the intent is committed before the
first: from then on the task cannot be cancelled.
"""

import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import structlog

from app.catalog.models import Model
from app.egress import EgressError
from app.engine import transitions as decide
from app.engine.breaker_sync import acquire_permission
from app.engine.claim import ClaimedTask
from app.engine.transitions import Advance, Decision, Fail
from app.errors import TaskFailure
from app.failpoints import failpoint
from app.files.media import MediaError, convert_image, read_size
from app.runtime import Runtime
from app.storage import StorageError
from app.upstreams.see2ai.actions import NORMALIZE, Action
from app.upstreams.see2ai.actions.action import urls_in
from app.upstreams.see2ai.actions.fast_image import AUTO, resolve_ratio
from app.upstreams.see2ai.client import UPLOAD_SECONDS
from app.upstreams.see2ai.responses import ResultKind, UpstreamResult

log = structlog.get_logger()

Commit = Callable[[Advance], Awaitable[None]]

NORMALIZED_URLS = "normalized"  # in `upstream`: the links that are done, where the row wants it at all
NORMALIZE_STARTED = "asked"  # in `upstream`: SEE2AI was asked for one of them, or may have been
NOT_ACCEPTED = frozenset(
    {ResultKind.NOT_SENT, ResultKind.RATE_LIMITED, ResultKind.ACCOUNT_ERROR, ResultKind.SERVER_ERROR}
)
START_BYTES = 65_536
START_SECONDS = 10.0
MAX_REFERENCE_BYTES = 50_000_000


def needs_preparation(runtime: Runtime, action: Action, request: dict[str, Any], model: Model) -> bool:
    if request.get("aspect_ratio") == AUTO:
        return True
    if model.normalizes_references and urls_in(request, action.image_url_fields):
        return True
    return runtime.must_upload_references and _next_local_url(runtime, action, request) is not None


async def prepare(runtime: Runtime, visit: ClaimedTask, commit: Commit) -> Decision:
    """One thing on the way to `submit`; the same step again while more is to be done.

    `commit` writes an intent at once and raises where the task is another's by now.
    """
    action = runtime.actions[visit.action]
    if visit.upstream_request.get("aspect_ratio") == AUTO:
        return await _resolve_auto_ratio(runtime, visit)
    ours = _next_local_url(runtime, action, visit.upstream_request) if runtime.must_upload_references else None
    if ours is not None:
        return await _upload_reference(runtime, visit, ours)
    if NORMALIZED_URLS in visit.upstream_state:
        for link in urls_in(visit.upstream_request, action.image_url_fields):
            if link not in visit.upstream_state[NORMALIZED_URLS]:
                return await _normalize(runtime, visit, commit, link, action.normalize_profile)
    return Advance("submit", "prepared")


async def _resolve_auto_ratio(runtime: Runtime, visit: ClaimedTask) -> Decision:
    """The allowed ratio nearest to the first reference's own, 1:1 where it cannot be read."""
    url = visit.upstream_request["image_input"][0]
    try:
        size = read_size(await _read_start(runtime, url))
    except (EgressError, StorageError) as error:
        log.info("reference_unreadable", task_no=visit.task_no, error=str(error))
        size = None
    ratio = resolve_ratio(size)
    return _prepared(visit, f"auto is {ratio}", visit.upstream_request | {"aspect_ratio": ratio})


async def _read_start(runtime: Runtime, url: str) -> bytes:
    key = runtime.store.key_from_url(url)
    if key is None:
        return await runtime.egress.read_start(url, max_bytes=START_BYTES, timeout_seconds=START_SECONDS)
    found = await runtime.store.open(key, end=START_BYTES)
    return b"" if found is None else b"".join([chunk async for chunk in found.content])


async def _upload_reference(runtime: Runtime, visit: ClaimedTask, url: str) -> Decision:
    """A file that SEE2AI could not fetch from us becomes one in its own storage."""
    key = runtime.store.key_from_url(url) or ""
    breaker = runtime.breakers[runtime.actions[visit.action].provider]
    try:
        with tempfile.TemporaryDirectory(prefix="gateway-") as directory:
            path = Path(directory) / key.rpartition("/")[2]
            found = await runtime.store.open(key)
            if found is None:
                return Fail(TaskFailure.UPSTREAM_REJECTED, f"no such file of ours: {key}")
            if found.size > MAX_REFERENCE_BYTES:
                return Fail(TaskFailure.UPSTREAM_REJECTED, f"larger than SEE2AI takes: {key}")
            async with await anyio.open_file(path, "wb") as file:
                async for chunk in found.content:
                    await file.write(chunk)
            if path.suffix == ".webp":  # SEE2AI refuses these
                to = path.with_suffix("")
                path = to.replace(to.with_suffix(f".{(await convert_image(path, to)).ext}"))
            # Asked last: while the circuit is open, whoever is let through must come back with an answer.
            if pause := await acquire_permission(runtime, breaker, is_free=True, probe_seconds=UPLOAD_SECONDS + 10):
                return decide.wait_for_upstream(visit, pause, f"circuit open: {breaker.reason}")
            with breaker.call(is_free=True):
                result = breaker.record_result(await runtime.see2ai.upload(path), is_free=True)
    except (StorageError, OSError) as error:  # OSError: this machine's own disk, where the file passes through
        return decide.after_preparation(visit, UpstreamResult(ResultKind.NOT_SENT, f"storage: {error}"))
    except MediaError as error:
        return Fail(TaskFailure.UPSTREAM_REJECTED, f"{key}: {error}")
    failpoint("prepare.after_answer")
    if result.kind is not ResultKind.SUCCEEDED:
        return decide.after_preparation(visit, result)
    if runtime.store.key_from_url(result.urls[0]):
        return Fail(TaskFailure.UPSTREAM_UNAVAILABLE, "SEE2AI gave our own link back")
    return _prepared(visit, f"handed over {key}", _replace_url(runtime, visit, url, result.urls[0]))


async def _normalize(runtime: Runtime, visit: ClaimedTask, commit: Commit, url: str, profile: str) -> Decision:
    breaker = runtime.breakers[NORMALIZE.provider]
    if pause := await acquire_permission(runtime, breaker):
        return decide.wait_for_upstream(visit, pause, f"circuit open: {breaker.reason}")
    request = {"image_url": url, "profile": profile}
    is_first = NORMALIZE_STARTED not in visit.upstream_state
    with breaker.call():
        if is_first:
            changes = {"attempts": visit.attempts, "upstream_state": visit.upstream_state | {NORMALIZE_STARTED: True}}
            await commit(Advance("prepare", "asking SEE2AI to normalize", changes=changes))
        result = breaker.record_result(await runtime.see2ai.submit(NORMALIZE, request, may_send=visit.is_held))
    failpoint("prepare.after_answer")
    if is_first and result.kind in NOT_ACCEPTED:
        del visit.upstream_state[NORMALIZE_STARTED]
    if result.kind is not ResultKind.SUCCEEDED:
        return decide.after_preparation(visit, result)
    link = result.urls[0]
    upstream = visit.upstream_state | {NORMALIZED_URLS: [*visit.upstream_state[NORMALIZED_URLS], link]}
    return _prepared(visit, "a reference is normalized", _replace_url(runtime, visit, url, link), upstream)


def _prepared(
    visit: ClaimedTask, note: str, request: dict[str, Any], upstream: dict[str, Any] | None = None
) -> Advance:
    kept = {
        name: value for name, value in (upstream or visit.upstream_state).items() if name not in {"troubles", "note"}
    }
    return Advance("prepare", note, changes={"upstream_request": request, "upstream_state": kept})


def _next_local_url(runtime: Runtime, action: Action, request: dict[str, Any]) -> str | None:
    links = urls_in(request, (*action.image_url_fields, *action.av_url_fields))
    return next((link for link in links if runtime.store.key_from_url(link)), None)


def _replace_url(runtime: Runtime, visit: ClaimedTask, old: str, new: str) -> dict[str, Any]:
    """The request with another link wherever the old one stands."""
    action, request = runtime.actions[visit.action], dict(visit.upstream_request)
    for field in (*action.image_url_fields, *action.av_url_fields):
        value = request.get(field)
        if isinstance(value, list):
            request[field] = [new if link == old else link for link in value]
        elif value == old:
            request[field] = new
    return request
