"""Every row of the table "answer to a submit", over HTTP, in both worlds: what is sent again, and who pays."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

from app.settings import Settings
from app.upstreams import breaker_state
from app.upstreams.protocol import ResultKind
from app.upstreams.see2ai import client
from app.upstreams.see2ai.actions import ACTIONS
from app.upstreams.see2ai.client import See2aiClient
from app.upstreams.see2ai.responses import HttpResponse, read_submit
from tests.support.breakers import shorten_pauses
from tests.support.makers import Maker, User
from tests.support.ports import dead_port
from tests.support.sandbox_server import Server, directive
from tests.support.task_rows import (
    SECRET,
    Ended,
    distinct,
    ended,
    polls,
    row_of,
    run_all,
    set_deadline,
    shorten_delays,
    submits,
)
from tests.support.waiting import until

pytestmark = pytest.mark.anyio
working = pytest.mark.usefixtures("working")
PRICE = 30
DEAD = f"127.0.0.1:{dead_port()}"
"""Nothing listens there until a test starts a server."""
FORMS = ("string", "list", "error.message", "message", "error_message", "not-json", "html")


@pytest.fixture(autouse=True)
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_delays(monkeypatch)
    shorten_pauses(monkeypatch)


async def refunded(make: Maker, user: User, points: int) -> None:
    assert await make.balance(user) == (points, 0)


def hides_see2ais_words(one: Ended) -> None:
    """The caller gets a reason in Chinese, without SEE2AI's text."""
    assert "积分已退还" in one.task["errorMessage"]
    for word in (SECRET, "HTTP", "see2ai", "SEE2AI", "circuit", "breaker", "请充值"):
        assert word not in one.words, word


# ------------------------------------------------------------------ the input is refused


@working
async def test_a_refused_input_fails_at_once_and_only_the_operator_reads_why(make: Maker, upstream: Server) -> None:
    user = await make.user(points=1000)
    codes = {
        f'[[sandbox: {{"where": "submit", "fail": {code}, "text": "{SECRET} {code}"}}]]': code
        for code in (400, 404, 405, 409, 413, 422)
    }
    ends = await run_all(make, user, codes)
    for prompt, code in codes.items():
        one = ends[prompt]
        assert (one.outcome, one.row["suspected_orphan"]) == ("UPSTREAM_REJECTED", False), prompt
        assert one.row["operator_note"] == f"HTTP {code}: {SECRET} {code}"
        assert len(submits(upstream, one.prompt)) == 1
        hides_see2ais_words(one)
    await refunded(make, user, 1000)


@working
async def test_the_reason_is_found_in_every_form_of_error(make: Maker, upstream: Server) -> None:
    user = await make.user(points=1000)
    # By /control, so the reason is not in the prompt, and the caller's texts can be searched for it.
    for form in FORMS:
        upstream.control({"fail": 400, "where": "submit", "detail": form, "text": f"{SECRET} {form}"})
        one = (await run_all(make, user, [f"form {form}"]))[f"form {form}"]
        assert one.outcome == "UPSTREAM_REJECTED"
        assert f"{SECRET} {form}" in one.row["operator_note"]
        hides_see2ais_words(one)
    upstream.control()
    real = (await run_all(make, user, ["[[sandbox: gibberish]]"]))["[[sandbox: gibberish]]"]
    assert "gibberish" in real.row["operator_note"]
    await refunded(make, user, 1000)


# ------------------------------------------------------------------ sent again, because SEE2AI accepted nothing


@working
async def test_errors_of_see2ai_are_tried_three_times_in_all(make: Maker, upstream: Server) -> None:
    user = await make.user(points=1000)
    expected = {
        f'[[sandbox: {{"where": "submit", "fail": 500, "text": "{SECRET}"}}]]': ("UPSTREAM_UNAVAILABLE", 3),
        directive({"where": "submit", "fail": 502, "detail": "html", "text": SECRET}): ("UPSTREAM_UNAVAILABLE", 3),
        '[[sandbox: {"where": "submit", "fail": 503, "retry_after": 0}]]': ("UPSTREAM_UNAVAILABLE", 3),
        directive({"where": "submit", "fail": 503, "times": 2}, {"take_seconds": 0}): ("completed", 3),
        directive(
            {"where": "submit", "fail": 500, "times": 1},
            {"where": "submit", "fail": 502, "times": 1},
            {"where": "submit", "fail": 503, "times": 1},
            {"take_seconds": 0},
        ): ("UPSTREAM_UNAVAILABLE", 3),
        directive(
            {"where": "submit", "fail": 503, "times": 2},
            {"where": "submit", "fail": 429, "times": 2},
            {"where": "submit", "fail": 503, "times": 1},
            {"take_seconds": 0},
        ): ("UPSTREAM_UNAVAILABLE", 5),
        '[[sandbox: {"where": "submit", "fail": 504}]]': ("TIMED_OUT", 1),
        directive({"where": "submit", "fail": 429, "times": 5}, {"take_seconds": 0}): ("completed", 6),
    }
    ends = await run_all(make, user, expected)
    assert {prompt: (one.outcome, len(submits(upstream, one.prompt))) for prompt, one in ends.items()} == expected
    assert not any(one.row["suspected_orphan"] for one in ends.values())
    await refunded(make, user, 1000 - 2 * PRICE)


@working
async def test_retry_after_is_honoured(make: Maker, upstream: Server) -> None:
    user = await make.user(points=100)
    prompts = [
        directive({"where": "submit", "fail": 429, "retry_after": 1, "times": 1}, {"take_seconds": 0}),
        directive({"where": "submit", "fail": 503, "retry_after": 1, "times": 1}, {"take_seconds": 0}),
    ]
    ends = await run_all(make, user, prompts)
    for prompt in prompts:
        first, second = (entry["monotonic"] for entry in submits(upstream, ends[prompt].prompt))
        assert second - first >= 1.0
        assert ends[prompt].outcome == "completed"


@working
async def test_a_429_until_the_deadline_is_refunded(make: Maker, upstream: Server) -> None:
    user = await make.user(points=100)
    task_no = await make.task_no(
        user, prompt := distinct(directive({"where": "submit", "fail": 429, "retry_after": 2, "text": SECRET}))
    )
    await until("a first try", lambda: submits(upstream, prompt))
    await set_deadline(make.runtime, task_no, 0.5)
    one = await ended(make, user, task_no)
    assert (one.outcome, one.row["suspected_orphan"]) == ("UPSTREAM_UNAVAILABLE", False)
    assert SECRET in one.row["operator_note"]
    assert submits(upstream, prompt, "accepted") == []
    await refunded(make, user, 100)


@asynccontextmanager
async def relay(origin: str) -> AsyncIterator[None]:
    """Starts a server on the dead port that forwards every connection to the sandbox."""
    there = urlsplit(origin)

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(65536):
            writer.write(piece)
        writer.close()

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(there.hostname, there.port)
        await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer), return_exceptions=True)

    server = await asyncio.start_server(join, *DEAD.split(":"))
    try:
        yield
    finally:
        server.close()


@working
@pytest.mark.settings(see2ai_base_url=f"http://{DEAD}", egress_allow=DEAD)
async def test_a_refused_connection_is_tried_until_it_works_or_the_deadline(make: Maker, upstream: Server) -> None:
    user = await make.user(points=2 * PRICE)
    late, lost = await make.task_no(user, '[[sandbox: {"take_seconds": 0}]]'), await make.task_no(user, "not sent")

    async def has_tried() -> bool:
        return (await row_of(make.runtime, lost))["attempts"] >= 4

    await until("several tries", has_tried)
    assert [(await make.task(user, no))["status"] for no in (late, lost)] == ["queued", "queued"]
    await set_deadline(make.runtime, lost, 0.1)
    one = await ended(make, user, lost)
    assert (one.outcome, one.row["suspected_orphan"]) == ("UPSTREAM_UNAVAILABLE", False)
    assert "Connect" in one.row["operator_note"]
    hides_see2ais_words(one)
    async with relay(upstream.origin):
        assert (await ended(make, user, late)).outcome == "completed"
    assert len(submits(upstream, '[[sandbox: {"take_seconds": 0}]]')) == 1
    assert submits(upstream, "not sent") == []
    await refunded(make, user, PRICE)


# ------------------------------------------------------------------ our key, our balance


@working
async def test_an_empty_balance_makes_all_tasks_wait_and_one_probe(make: Maker, upstream: Server) -> None:
    user = await make.user(points=300)
    upstream.control({"balance": "empty"})
    first = await make.task_no(user, '[[sandbox: {"take_seconds": 0}]] 1')
    await until("the breaker is open", lambda: make.runtime.breakers["see2ai"].is_open)
    others = [await make.task_no(user, f'[[sandbox: {{"take_seconds": 0}}]] {n}') for n in range(2, 8)]
    lost = await make.task_no(user, "gives up")

    async def is_waiting() -> bool:
        return "breaker open" in str((await row_of(make.runtime, lost))["upstream_state"])

    await until("the task waits", is_waiting)
    assert {(await make.task(user, no))["status"] for no in (first, *others, lost)} == {"queued"}
    await set_deadline(make.runtime, lost, 0.1)
    await until("a second attempt", lambda: len(upstream.journal(outcome="refused")) > 1)
    tries = [entry for entry in upstream.journal() if entry["method"] == "POST"]
    gaps = [later["monotonic"] - earlier["monotonic"] for earlier, later in itertools.pairwise(tries)]
    pauses = [breaker_state.FIRST_PAUSE_SECONDS * 2**number for number in range(len(gaps))]
    assert all(gap >= 0.9 * pause for gap, pause in zip(gaps, pauses, strict=True)), "one probe for each pause"
    assert {entry["outcome"] for entry in tries} == {"refused"}
    upstream.control()
    for task_no in (first, *others):
        assert (await ended(make, user, task_no)).outcome == "completed"
    assert not make.runtime.breakers["see2ai"].is_open
    one = await ended(make, user, lost)
    assert (one.outcome, one.row["suspected_orphan"]) == ("UPSTREAM_UNAVAILABLE", False)
    assert "HTTP 401: 余额不足，请充值" in one.row["operator_note"]
    assert one.task["errorCode"] not in {"UNAUTHENTICATED", "INSUFFICIENT_POINTS"}
    hides_see2ais_words(one)
    assert submits(upstream, "gives up", "accepted") == []
    await refunded(make, user, 300 - 7 * PRICE)


@working
async def test_a_rejected_key_opens_the_breaker_and_the_next_answer_closes_it(
    make: Maker, upstream: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker_state, "FIRST_PAUSE_SECONDS", 2.0)
    user = await make.user(points=100)
    for code in (401, 402, 403):
        upstream.control({"fail": code, "where": "submit", "times": 1})
        task_no = await make.task_no(user, '[[sandbox: {"take_seconds": 0}]]')
        await until(f"{code} opens", lambda code=code: f"HTTP {code}" in make.runtime.breakers["see2ai"].reason)
        assert (await make.task(user, task_no))["status"] == "queued"
        assert (await ended(make, user, task_no)).outcome == "completed"
        assert not make.runtime.breakers["see2ai"].is_open


@working
async def test_a_probe_with_another_error_delays_no_other_task(
    make: Maker, upstream: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """401, then a 503 for the probe: the next probe is made after a pause, not after 70 s."""
    monkeypatch.setattr(breaker_state, "FIRST_PAUSE_SECONDS", 0.5)
    user = await make.user(points=100)
    upstream.control({"fail": 401, "where": "submit", "times": 1}, {"fail": 503, "where": "submit", "times": 1})
    ends = await run_all(make, user, ['[[sandbox: {"take_seconds": 0}]]'])
    assert ends['[[sandbox: {"take_seconds": 0}]]'].outcome == "completed"
    assert len(submits(upstream, ends['[[sandbox: {"take_seconds": 0}]]'].prompt)) == 3


# ------------------------------------------------------------------ unknown whether a job runs


@working
async def test_after_an_ambiguous_answer_a_job_is_never_sent_again(
    make: Maker, upstream: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "SUBMIT_SECONDS", 1.5)
    user = await make.user(points=1000)
    words = ("hang", "reset", "malformed", "html", "no-task-id", "gzip-bomb", "huge", "drip")
    prompts = [f'[[sandbox: {{"where": "submit", "fault": "{word}"}}]]' for word in words]
    prompts += [directive({"where": "submit", "fault": "redirect", "url": f"{upstream.origin}/stolen"})]
    ends = await run_all(make, user, prompts)
    for prompt, one in ends.items():
        assert (one.outcome, one.row["suspected_orphan"]) == ("UPSTREAM_UNCERTAIN", True), prompt
        assert one.row["operator_note"], prompt
        assert one.row["upstream_task_id"] is None
        assert "积分已退还" in one.task["errorMessage"]
    await asyncio.sleep(0.3)
    for outcome in ("", "accepted"):
        times = {prompt: len(submits(upstream, one.prompt, outcome)) for prompt, one in ends.items()}
        assert times == dict.fromkeys(prompts, 1)
    assert not [entry for entry in upstream.journal() if "stolen" in entry["path"]]
    await refunded(make, user, 1000)


@working
async def test_a_task_id_that_another_task_has_is_no_task_id(make: Maker, upstream: Server) -> None:
    user = await make.user(points=100)
    first = await make.task_no(user, '[[sandbox: {"take_seconds": 2}]]')
    await until("the first job", lambda: submits(upstream, '[[sandbox: {"take_seconds": 2}]]', "accepted"))
    second = await make.task_no(user, '[[sandbox: {"fault": "reuse-task-id"}]]')
    two = await ended(make, user, second)
    assert (two.outcome, two.row["suspected_orphan"]) == ("UPSTREAM_UNCERTAIN", True)
    assert "used before" in two.row["operator_note"]
    assert len(submits(upstream, '[[sandbox: {"fault": "reuse-task-id"}]]')) == 1
    one = await ended(make, user, first)
    assert one.outcome == "completed"
    assert one.row["upstream_task_id"] not in two.words + one.words
    await refunded(make, user, 100 - PRICE)


@working
async def test_an_answer_wrapped_in_data_is_understood(make: Maker, upstream: Server) -> None:
    user = await make.user(points=100)
    prompt = directive(
        {"where": "submit", "fault": "wrapped"}, {"where": "poll", "fault": "wrapped"}, {"take_seconds": 0}
    )
    one = (await run_all(make, user, [prompt]))[prompt]
    assert one.outcome == "completed"
    assert len(submits(upstream, one.prompt)) == 1
    assert polls(upstream, one.row)


# ------------------------------------------------------------------ raw bytes that the sandbox cannot send

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
GARBAGE = {
    "no HTTP": b"\x00\x01\x02 what is this\r\n\r\n",
    "a bad header": b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n{}",
    "a bad length": HEAD + b"Content-Length: -5\r\n\r\n{}",
    "two lengths": HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "a cut body": HEAD + b"Content-Length: 500\r\n\r\n{",
    "a bad chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n",
    "a cut chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{}",
    "an endless header": b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000 + b"\r\n\r\n{}",
    "no gzip": HEAD + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
    "brotli": HEAD + b"Content-Encoding: br\r\nContent-Length: 2\r\n\r\n{}",
    "nothing": b"",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "a deep body": HEAD + b"Connection: close\r\n\r\n" + b"[" * 200_000,
    "no utf-8": HEAD + b'Connection: close\r\n\r\n{"task_id": "\xff\xfe"}',
    "a long number": HEAD + b'Connection: close\r\n\r\n{"task_id": ' + b"9" * 9000 + b"}",
    "a lone surrogate": HEAD + b'Connection: close\r\n\r\n{"task_id": "\\ud800"}',
    "a long id": HEAD + b'Connection: close\r\n\r\n{"task_id": "' + b"a" * 129 + b'"}',
    "a list": HEAD + b"Connection: close\r\n\r\n[1, 2]",
    "a status of 299 without words": b"HTTP/1.1 299 Hm\r\nContent-Length: 0\r\n\r\n",
}


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[str]:
    """A server that sends these bytes to each client and closes the connection. Gives its origin."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await asyncio.sleep(0.02)  # the request's body may still come
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def speaker(origin: str) -> See2aiClient:
    return See2aiClient(Settings(_env_file=None, see2ai_base_url=origin, see2ai_api_key="sk-test"))


async def send_request(origin: str, *, may_send: bool = True) -> tuple[ResultKind, ResultKind]:
    """The kinds of result of one submit and one poll."""
    see2ai, action = speaker(origin), next(iter(ACTIONS.values()))
    try:
        sent = await see2ai.submit(action, {"prompt": "x"}, may_send=lambda: may_send)
        polled = await see2ai.poll(action, "a" * 32)
    finally:
        await see2ai.close()
    return sent.kind, polled.kind


@pytest.mark.parametrize("answer", GARBAGE.values(), ids=GARBAGE)
async def test_garbage_is_an_unknown_outcome_of_a_submit_and_an_error_of_a_poll(answer: bytes) -> None:
    async with answering(answer) as origin:
        assert await send_request(origin) == (ResultKind.UNKNOWN_OUTCOME, ResultKind.SERVER_ERROR)


async def test_a_request_that_was_never_sent_is_known_as_such(upstream: Server) -> None:
    not_sent = (ResultKind.NOT_SENT, ResultKind.SERVER_ERROR)
    assert await send_request(f"http://127.0.0.1:{dead_port()}") == not_sent
    assert await send_request(upstream.origin.replace("http:", "https:")) == not_sent  # not TLS
    assert await send_request("http://no-such-host.invalid") == not_sent
    assert upstream.journal() == []
    assert (await send_request(upstream.origin, may_send=False))[0] is ResultKind.NOT_SENT
    assert [entry["method"] for entry in upstream.journal()] == ["GET"]


@pytest.mark.parametrize(
    "body", [b'{"detail": "\\ud800 x"}', b'{"message": "\\udfff"}', b"\xff\xfe", b'{"detail": ["\\ud800"]}']
)
def test_a_reason_can_always_be_stored(body: bytes) -> None:
    read_submit(HttpResponse(400, body)).detail.encode()
