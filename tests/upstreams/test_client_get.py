"""A poll goes through aiohttp alone: each of its guards, against a server that misbehaves on a socket."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from prometheus_client import REGISTRY

from app.settings import Settings
from app.upstreams.protocol import ResultKind, UpstreamResult
from app.upstreams.see2ai import client
from app.upstreams.see2ai.actions import ACTIONS
from app.upstreams.see2ai.client import MAX_BODY_BYTES, MAX_RETRY_AFTER_SECONDS, See2aiClient
from tests.support.ports import dead_port
from tests.support.raw_connections import GONE
from tests.support.waiting import until

pytestmark = pytest.mark.anyio
ACTION = ACTIONS["see2ai_image_generation_fast_v1"]
RUNNING = json.dumps({"task_id": "t", "status": "running", "progress": 40}).encode()


def answer(body: bytes = RUNNING, *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@dataclass
class ScriptedServer:
    """A server that sends the scripted answers one after another, then `answer()`. CUT closes the connection."""

    script: list[bytes] = field(default_factory=list)
    heads: list[bytes] = field(default_factory=list)
    connections: int = 0
    drip_seconds: float = 0.0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                self.heads.append(await reader.readuntil(b"\r\n\r\n"))
                said = self.script.pop(0) if self.script else answer()
                whole, is_cut, _ = said.partition(CUT)
                if self.drip_seconds:
                    for place in range(len(whole)):
                        writer.write(whole[place : place + 1])
                        await asyncio.sleep(self.drip_seconds)
                writer.write(whole if not self.drip_seconds else b"")
                await writer.drain()
                if is_cut:
                    return
        except GONE:
            pass
        finally:
            writer.transport.abort()


CUT = b"<cut>"


@asynccontextmanager
async def answering(*script: bytes) -> AsyncIterator[tuple[See2aiClient, ScriptedServer]]:
    scripted = ScriptedServer(list(script))
    server = await asyncio.start_server(scripted.serve, "127.0.0.1", 0)
    see2ai = client_of(server.sockets[0].getsockname()[1])
    try:
        yield see2ai, scripted
    finally:
        await see2ai.close()
        server.close()


def client_of(port: int) -> See2aiClient:
    return See2aiClient(Settings(_env_file=None, see2ai_base_url=f"http://127.0.0.1:{port}", see2ai_api_key="sk-x"))


async def polled(*script: bytes) -> UpstreamResult:
    """The first poll's result. The next poll is good whatever the first one left on its connection."""
    async with answering(*script) as (see2ai, _):
        first = await see2ai.poll(ACTION, "t")
        assert (await see2ai.poll(ACTION, "t")).progress == 40
        return first


@pytest.mark.parametrize(
    "said",
    [
        answer(b" " * (MAX_BODY_BYTES + 1)),
        answer(b"x", length=10**12) + b"x" * (MAX_BODY_BYTES + 1),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f4241\r\n" + b" " * 0xF4241 + b"\r\n0\r\n\r\n",
        answer(gzip.compress(b" " * (MAX_BODY_BYTES + 1)), "Content-Encoding: gzip"),
    ],
    ids=["too long", "a length of 1 TB", "chunked", "a gzip bomb"],
)
async def test_too_large_an_answer_is_not_kept(said: bytes) -> None:
    result = await polled(said)
    assert result.kind is ResultKind.SERVER_ERROR
    assert "too long" in result.detail


@pytest.mark.parametrize(
    "said",
    [
        answer(b'{"status": "runn'),
        answer(b"[1]"),
        answer(b""),
        answer(b"<html>wait</html>", "Content-Type: text/html"),
        answer(b"no gzip", "Content-Encoding: gzip"),
        answer(RUNNING, "Content-Encoding: br"),
        answer(RUNNING, status="500 Oops"),
        answer(RUNNING, status="204 Nothing"),
    ],
    ids=["broken JSON", "no object", "nothing", "HTML", "no gzip", "brotli", "a 500", "a 204"],
)
async def test_an_unreadable_answer_is_a_server_error(said: bytes) -> None:
    assert (await polled(said)).kind is ResultKind.SERVER_ERROR


@pytest.mark.parametrize("claim", ["text/html", "application/octet-stream", "image/png; charset=x"])
async def test_the_bytes_decide_and_not_the_content_type(claim: str) -> None:
    assert (await polled(answer(RUNNING, f"Content-Type: {claim}"))).progress == 40


async def test_a_compressed_answer_is_read() -> None:
    assert (await polled(answer(gzip.compress(RUNNING), "Content-Encoding: gzip"))).progress == 40


async def test_a_drip_ends_at_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes in time, the whole answer would not."""
    monkeypatch.setattr(client, "POLL_SECONDS", 0.3)
    async with answering() as (see2ai, scripted):
        scripted.drip_seconds = 0.05
        result = await see2ai.poll(ACTION, "t")
        assert (result.kind, result.detail.partition(":")[0]) == (ResultKind.SERVER_ERROR, "TimeoutError")
        scripted.drip_seconds = 0.0
        assert (await see2ai.poll(ACTION, "t")).progress == 40
        assert scripted.connections == 2


async def test_a_server_that_accepts_and_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "POLL_SECONDS", 0.3)

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    see2ai = client_of(server.sockets[0].getsockname()[1])
    assert (await see2ai.poll(ACTION, "t")).kind is ResultKind.SERVER_ERROR
    await see2ai.close()
    server.close()


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary", "308 Permanent"])
async def test_a_redirect_is_not_followed(status: str) -> None:
    async with answering() as (other_client, other):
        target = f"{other_client._base_url}/stolen"
        result = await polled(answer(RUNNING, f"Location: {target}", status=status))
        assert (result.kind, other.heads) == (ResultKind.SERVER_ERROR, [])


@pytest.mark.parametrize(
    "said",
    [CUT, b"HTTP/1.1 200 O" + CUT, answer(RUNNING[:9], length=len(RUNNING)) + CUT],
    ids=["before the answer", "within the head", "within the body"],
)
async def test_a_reset_is_a_server_error(said: bytes) -> None:
    """aiohttp repeats a GET once if the answer has not begun. So the server cuts both."""
    async with answering(said, said, said, said) as (see2ai, scripted):
        assert (await see2ai.poll(ACTION, "t")).kind is ResultKind.SERVER_ERROR
        assert 1 <= len(scripted.heads) <= 2
        scripted.script.clear()
        assert (await see2ai.poll(ACTION, "t")).progress == 40


async def test_nobody_listens() -> None:
    see2ai = client_of(dead_port())
    assert (await see2ai.poll(ACTION, "t")).kind is ResultKind.SERVER_ERROR
    await see2ai.close()


async def test_what_a_poll_sends_and_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key, no cookie, no proxy; and one connection for one poll after another."""
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{dead_port()}")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{dead_port()}")
    async with answering(answer(RUNNING, "Set-Cookie: a=b; Path=/")) as (see2ai, scripted):
        for _ in range(3):
            assert (await see2ai.poll(ACTION, "t")).progress == 40
        assert scripted.connections == 1
        path = (ACTION.status_path or "").format(task_id="t")
        for head in scripted.heads:
            lines = head.decode().lower().split("\r\n")
            assert head.startswith(f"GET {path} HTTP/1.1\r\n".encode())
            assert {"authorization: bearer sk-x", "accept-encoding: identity"} <= set(lines)
            assert not [line for line in lines if line.startswith("cookie")]


async def test_a_kept_connection_that_was_closed_meanwhile_is_replaced() -> None:
    async with answering(answer() + CUT) as (see2ai, scripted):
        assert (await see2ai.poll(ACTION, "t")).progress == 40
        await until("it is closed", lambda: scripted.connections == 1)
        assert (await see2ai.poll(ACTION, "t")).progress == 40
        assert scripted.connections == 2


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (answer(b"{}", status="401 No"), ResultKind.ACCOUNT_ERROR),
        (answer(b"{}", status="402 Pay"), ResultKind.ACCOUNT_ERROR),
        (answer(b"{}", status="404 Where"), ResultKind.NOT_FOUND),
        (answer(b"{}", "Retry-After: 1e9", status="429 Slowly"), ResultKind.RATE_LIMITED),
        (answer(b"", status="503 Later"), ResultKind.SERVER_ERROR),
    ],
)
async def test_the_kinds_are_counted_as_before(said: bytes, kind: ResultKind) -> None:
    def counted() -> float:
        labels = {"call": "poll", "result": kind.value}
        return REGISTRY.get_sample_value("gateway_upstream_answers_total", labels) or 0.0

    before = counted()
    result = await polled(said)
    assert (result.kind, counted() - before) == (kind, 1.0)
    if kind is ResultKind.RATE_LIMITED:
        assert result.retry_after_seconds == MAX_RETRY_AFTER_SECONDS


async def test_a_poll_that_is_cancelled_gives_its_connection_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer to a cancelled poll never becomes that of the next one."""
    async with answering(answer(RUNNING, length=10**6), answer(b'{"status": "failed"}')) as (see2ai, scripted):
        running = asyncio.create_task(see2ai.poll(ACTION, "t"))
        await until("it is asked", lambda: scripted.heads)
        running.cancel()
        assert isinstance((await asyncio.gather(running, return_exceptions=True))[0], asyncio.CancelledError)
        assert (await see2ai.poll(ACTION, "t")).kind is ResultKind.FAILED
        assert scripted.connections == 2
