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

from app.egress import EgressError
from app.errors import TaskFailure
from app.faults import fault_point
from app.media import MediaError, convert_image, read_size
from app.points.models import Model
from app.runtime import Runtime
from app.see2ai.actions import NORMALIZE, Action
from app.see2ai.actions.action import links_of
from app.see2ai.actions.fast_image import AUTO, resolve_ratio
from app.see2ai.client import UPLOAD_SECONDS
from app.see2ai.states import ResultKind, Verdict
from app.storage import StorageError
from app.tasks import decide
from app.tasks.claim import Visit
from app.tasks.decide import Fail, Move, Onward
from app.tasks.order import Offer
from app.tasks.providers import ask_leave

log = structlog.get_logger()

Commit = Callable[[Onward], Awaitable[None]]

NORMALIZING = "normalized"  # in `upstream`: the links that are done, where the row wants it at all
ASKED = "asked"  # in `upstream`: SEE2AI was asked for one of them, or may have been
NOT_TAKEN = frozenset({ResultKind.NOT_SENT, ResultKind.RATE_LIMITED, ResultKind.ACCOUNT_ERROR, ResultKind.SERVER_ERROR})
START_BYTES = 65_536
START_SECONDS = 10.0
LARGEST_HANDED_BYTES = 50_000_000


def needs_preparation(runtime: Runtime, offer: Offer, model: Model) -> bool:
    action, request = offer.action, offer.request
    if request.get("aspect_ratio") == AUTO:
        return True
    if model.normalizes and links_of(request, action.picture_fields):
        return True
    return runtime.hands_over and _next_of_ours(runtime, action, request) is not None


async def prepare(runtime: Runtime, visit: Visit, commit: Commit) -> Move:
    """One thing on the way to `submit`; the same step again while more is to be done.

    `commit` writes an intent at once and raises where the task is another's by now.
    """
    action = runtime.actions[visit.action]
    if visit.upstream_request.get("aspect_ratio") == AUTO:
        return await _settle_ratio(runtime, visit)
    ours = _next_of_ours(runtime, action, visit.upstream_request) if runtime.hands_over else None
    if ours is not None:
        return await _hand_over(runtime, visit, ours)
    if NORMALIZING in visit.upstream_state:
        for link in links_of(visit.upstream_request, action.picture_fields):
            if link not in visit.upstream_state[NORMALIZING]:
                return await _normalize(runtime, visit, commit, link, action.normalize_profile)
    return Onward("submit", "prepared")


async def _settle_ratio(runtime: Runtime, visit: Visit) -> Move:
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
    key = runtime.store.key_of(url)
    if key is None:
        return await runtime.egress.read_start(url, max_bytes=START_BYTES, timeout_seconds=START_SECONDS)
    found = await runtime.store.open(key, end=START_BYTES)
    return b"" if found is None else b"".join([chunk async for chunk in found.content])


async def _hand_over(runtime: Runtime, visit: Visit, url: str) -> Move:
    """A file that SEE2AI could not fetch from us becomes one in its own storage."""
    key = runtime.store.key_of(url) or ""
    circuit = runtime.circuits[runtime.actions[visit.action].provider]
    try:
        with tempfile.TemporaryDirectory(prefix="gateway-") as directory:
            path = Path(directory) / key.rpartition("/")[2]
            found = await runtime.store.open(key)
            if found is None:
                return Fail(TaskFailure.UPSTREAM_REJECTED, f"no such file of ours: {key}")
            if found.size > LARGEST_HANDED_BYTES:
                return Fail(TaskFailure.UPSTREAM_REJECTED, f"larger than SEE2AI takes: {key}")
            async with await anyio.open_file(path, "wb") as file:
                async for chunk in found.content:
                    await file.write(chunk)
            if path.suffix == ".webp":  # SEE2AI refuses these
                to = path.with_suffix("")
                path = to.replace(to.with_suffix(f".{(await convert_image(path, to)).ext}"))
            # Asked last: while the circuit is open, whoever is let through must come back with an answer.
            if pause := await ask_leave(runtime, circuit, is_look=True, probe_seconds=UPLOAD_SECONDS + 10):
                return decide.parked(visit, pause, f"circuit open: {circuit.reason}")
            with circuit.call(is_look=True):
                verdict = circuit.heed(await runtime.see2ai.upload(path), is_look=True)
    except (StorageError, OSError) as error:  # OSError: this machine's own disk, where the file passes through
        return decide.after_chore(visit, Verdict(ResultKind.NOT_SENT, f"storage: {error}"))
    except MediaError as error:
        return Fail(TaskFailure.UPSTREAM_REJECTED, f"{key}: {error}")
    fault_point("prepare.after_answer")
    if verdict.kind is not ResultKind.SUCCEEDED:
        return decide.after_chore(visit, verdict)
    if runtime.store.key_of(verdict.urls[0]):
        return Fail(TaskFailure.UPSTREAM_UNAVAILABLE, "SEE2AI gave our own link back")
    return _prepared(visit, f"handed over {key}", _with_link(runtime, visit, url, verdict.urls[0]))


async def _normalize(runtime: Runtime, visit: Visit, commit: Commit, url: str, profile: str) -> Move:
    circuit = runtime.circuits[NORMALIZE.provider]
    if pause := await ask_leave(runtime, circuit):
        return decide.parked(visit, pause, f"circuit open: {circuit.reason}")
    request = {"image_url": url, "profile": profile}
    is_first = ASKED not in visit.upstream_state
    with circuit.call():
        if is_first:
            changes = {"attempts": visit.attempts, "upstream": visit.upstream_state | {ASKED: True}}
            await commit(Onward("prepare", "asking SEE2AI to normalize", changes=changes))
        verdict = circuit.heed(await runtime.see2ai.submit(NORMALIZE, request, may_send=visit.is_held))
    fault_point("prepare.after_answer")
    if is_first and verdict.kind in NOT_TAKEN:
        del visit.upstream_state[ASKED]
    if verdict.kind is not ResultKind.SUCCEEDED:
        return decide.after_chore(visit, verdict)
    link = verdict.urls[0]
    upstream = visit.upstream_state | {NORMALIZING: [*visit.upstream_state[NORMALIZING], link]}
    return _prepared(visit, "a reference is normalized", _with_link(runtime, visit, url, link), upstream)


def _prepared(visit: Visit, note: str, request: dict[str, Any], upstream: dict[str, Any] | None = None) -> Onward:
    kept = {name: value for name, value in (upstream or visit.upstream_state).items() if name not in {"troubles", "note"}}
    return Onward("prepare", note, changes={"request": request, "upstream": kept})


def _next_of_ours(runtime: Runtime, action: Action, request: dict[str, Any]) -> str | None:
    links = links_of(request, (*action.picture_fields, *action.media_fields))
    return next((link for link in links if runtime.store.key_of(link)), None)


def _with_link(runtime: Runtime, visit: Visit, old: str, new: str) -> dict[str, Any]:
    """The request with another link wherever the old one stands."""
    action, request = runtime.actions[visit.action], dict(visit.upstream_request)
    for field in (*action.picture_fields, *action.media_fields):
        value = request.get(field)
        if isinstance(value, list):
            request[field] = [new if link == old else link for link in value]
        elif value == old:
            request[field] = new
    return request
