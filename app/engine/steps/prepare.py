"""The step `prepare`: what must be done before the job itself is sent. Each run does one of these things.

- A request that depends on the size of its first reference is completed (`Action.size_rule`).
- Files that only the gateway can serve are uploaded to the upstream's storage.
- Reference images are normalized, where the model wants it.

All of it may be repeated after a crash, because the job is sent later and once. The upstream is paid for a normalized
image, so the intent is committed before the first one. From then on the task cannot be cancelled.
"""

import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import structlog

from app.catalog.models import Model
from app.egress import EgressError
from app.engine import transitions
from app.engine.state import ClaimedTask, TaskUpdate, UpstreamState
from app.engine.steps.commit import CommitIntent
from app.engine.steps.refusal import record_result
from app.engine.transitions import Advance, Decision, Fail
from app.errors import TaskFailure
from app.failpoints import failpoint
from app.files.media import MAX_HEADER_BYTES, MediaError, convert_image, read_header
from app.runtime import Runtime
from app.storage import ObjectStore, StorageError
from app.upstreams.action import Action, Size, SizeRule, urls_in
from app.upstreams.protocol import ResultKind, UpstreamResult
from app.upstreams.see2ai.actions import NORMALIZE
from app.upstreams.see2ai.client import UPLOAD_SECONDS

log = structlog.get_logger()

NOT_ACCEPTED = frozenset(
    {ResultKind.NOT_SENT, ResultKind.RATE_LIMITED, ResultKind.ACCOUNT_ERROR, ResultKind.SERVER_ERROR}
)
START_BYTES = (65_536, 500_000, MAX_HEADER_BYTES)
"""The size of most images is in the first bytes. Long metadata may precede it, so more is read then."""
START_SECONDS = 10.0
MAX_READS_PER_USER = 8  # in one process; slow servers of one user then leave most slots of the pool to others
READ_RETRY_SECONDS = 2.0
MAX_REFERENCE_BYTES = 50_000_000


_reads: Counter[int] = Counter()
"""The references that are being read, by user."""


def needs_preparation(runtime: Runtime, action: Action, request: dict[str, Any], model: Model) -> bool:
    if action.size_rule is not None and action.size_rule.is_needed(request):
        return True
    if model.normalizes_references and urls_in(request, action.image_url_fields):
        return True
    return runtime.must_upload_references and _next_local_url(runtime.store, action, request) is not None


async def prepare(runtime: Runtime, task: ClaimedTask, commit_intent: CommitIntent) -> Decision:
    """One thing on the way to `submit`; the same step again while more is to be done."""
    action, request = runtime.actions[task.action], task.upstream_request
    if action.size_rule is not None and action.size_rule.is_needed(request):
        return await _complete_by_size(runtime, task, action.size_rule)
    local_url = _next_local_url(runtime.store, action, request) if runtime.must_upload_references else None
    if local_url is not None:
        return await _upload_reference(runtime, task, action, local_url)
    done = task.upstream_state.normalized_urls
    if done is not None:
        for url in urls_in(request, action.image_url_fields):
            if url not in done:
                return await _normalize(runtime, task, commit_intent, action, url)
    return Advance("submit", "prepared")


async def _complete_by_size(runtime: Runtime, task: ClaimedTask, rule: SizeRule) -> Decision:
    if _reads[task.user_id] >= MAX_READS_PER_USER:
        return transitions.unchanged(task, READ_RETRY_SECONDS)
    _reads[task.user_id] += 1
    try:
        size = await _read_size(runtime, task.upstream_request[rule.reference_field][0])
    except (EgressError, StorageError) as error:
        log.info("reference_unreadable", task_no=task.task_no, error=str(error))
        size = None
    finally:
        _reads[task.user_id] -= 1
        if not _reads[task.user_id]:
            del _reads[task.user_id]
    return _prepared(task, f"size of the first reference: {size}", rule.apply(task.upstream_request, size))


async def _read_size(runtime: Runtime, url: str) -> Size | None:
    """Reads more of the image until its size is known. Raises EgressError or StorageError."""
    size = None
    for max_bytes in START_BYTES:
        start = await _read_start(runtime, url, max_bytes)
        header = read_header(start)
        size = header.size
        if header.is_final or len(start) < max_bytes:
            break
    return size


async def _read_start(runtime: Runtime, url: str, max_bytes: int) -> bytes:
    key = runtime.store.key_from_url(url)
    if key is None:
        return await runtime.caller_egress.read_start(url, max_bytes=max_bytes, timeout_seconds=START_SECONDS)
    stored = await runtime.store.open(key, end=max_bytes)
    return b"" if stored is None else b"".join([chunk async for chunk in stored.content])


async def _upload_reference(runtime: Runtime, task: ClaimedTask, action: Action, url: str) -> Decision:
    """A file that the upstream cannot fetch is stored at the upstream."""
    key = runtime.store.key_from_url(url) or ""
    breaker = runtime.breakers[action.provider]
    try:
        with tempfile.TemporaryDirectory(prefix="gateway-") as directory:
            path = await _fetch_stored(runtime.store, key, Path(directory))
            if isinstance(path, Fail):
                return path
            # Permission is asked last: whoever has the probe must come back with an answer soon.
            async with breaker.call(is_free=True, probe_seconds=UPLOAD_SECONDS + 10) as call:
                if call.wait_seconds:
                    return transitions.wait_for_upstream(task, call.wait_seconds, f"breaker open: {breaker.reason}")
                uploaded = await runtime.upstreams[action.provider].upload(path)
                result = await breaker.record_result(call, uploaded)
    except (StorageError, OSError) as error:  # OSError: the file passes through this machine's disk
        return transitions.after_preparation(task, UpstreamResult(ResultKind.NOT_SENT, f"storage: {error}"))
    except MediaError as error:
        return Fail(TaskFailure.UPSTREAM_REJECTED, f"{key}: {error}")
    failpoint("prepare.after_answer")
    if result.kind is not ResultKind.SUCCEEDED:
        return transitions.after_preparation(task, result)
    if runtime.store.key_from_url(result.urls[0]):
        return Fail(TaskFailure.UPSTREAM_UNAVAILABLE, "SEE2AI answered with the gateway's own URL")
    return _prepared(task, f"uploaded {key}", _replace_url(action, task.upstream_request, url, result.urls[0]))


async def _fetch_stored(store: ObjectStore, key: str, directory: Path) -> Path | Fail:
    """The stored file in `directory`, in a format that SEE2AI takes."""
    path = directory / key.rpartition("/")[2]
    stored = await store.open(key)
    if stored is None:
        return Fail(TaskFailure.UPSTREAM_REJECTED, f"no such stored file: {key}")
    if stored.size > MAX_REFERENCE_BYTES:
        return Fail(TaskFailure.UPSTREAM_REJECTED, f"larger than SEE2AI takes: {key}")
    async with await anyio.open_file(path, "wb") as file:
        async for chunk in stored.content:
            await file.write(chunk)
    if path.suffix != ".webp":
        return path
    converted = path.with_suffix("")  # SEE2AI refuses WebP
    return converted.replace(converted.with_suffix(f".{(await convert_image(path, converted)).ext}"))


async def _normalize(
    runtime: Runtime, task: ClaimedTask, commit_intent: CommitIntent, action: Action, url: str
) -> Decision:
    upstream, breaker = runtime.upstreams[NORMALIZE.provider], runtime.breakers[NORMALIZE.provider]
    request = {"image_url": url, "profile": action.normalize_profile}
    is_first = not task.upstream_state.is_normalize_started
    async with breaker.call(user_id=task.user_id) as call:
        if call.wait_seconds:
            return transitions.wait_for_upstream(task, call.wait_seconds, f"breaker open: {breaker.reason}")
        log.info("see2ai_submit", task_no=task.task_no, action=NORMALIZE.name, payload=request)
        if is_first:
            started = replace(task.upstream_state, is_normalize_started=True)
            update = TaskUpdate(attempts=task.attempts, upstream_state=started)
            await commit_intent(Advance("prepare", "asking SEE2AI to normalize", update=update))
        result = await upstream.submit(NORMALIZE, request, may_send=task.is_held)
        result = await record_result(breaker, call, task, result)
    failpoint("prepare.after_answer")
    if is_first and result.kind in NOT_ACCEPTED:
        task.upstream_state = replace(task.upstream_state, is_normalize_started=False)
    if result.kind is not ResultKind.SUCCEEDED:
        return transitions.after_preparation(task, result)
    normalized_url = result.urls[0]
    state = replace(task.upstream_state, normalized_urls=(*(task.upstream_state.normalized_urls or ()), normalized_url))
    new_request = _replace_url(action, task.upstream_request, url, normalized_url)
    return _prepared(task, "a reference is normalized", new_request, state)


def _prepared(task: ClaimedTask, note: str, request: dict[str, Any], state: UpstreamState | None = None) -> Advance:
    state = replace(state or task.upstream_state, server_errors=0, successes_when_refused=None, note="")
    return Advance("prepare", note, update=TaskUpdate(upstream_request=request, upstream_state=state))


def _next_local_url(store: ObjectStore, action: Action, request: dict[str, Any]) -> str | None:
    urls = urls_in(request, (*action.image_url_fields, *action.av_url_fields))
    return next((url for url in urls if store.key_from_url(url)), None)


def _replace_url(action: Action, request: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    """The request with `new` wherever `old` stands."""
    replaced = dict(request)
    for field in (*action.image_url_fields, *action.av_url_fields):
        value = request.get(field)
        if isinstance(value, list):
            replaced[field] = [new if url == old else url for url in value]
        elif value == old:
            replaced[field] = new
    return replaced
