"""The faults over a real socket: a client must see exactly the fault that the rule names."""

import gzip
import time
import zlib
from typing import Any

import httpx
import pytest

from app.sandbox.faults.misbehaviour import HUGE_BYTES, _gzip_bomb
from tests.support.sandbox_server import ACTION, Server, directive

BRIEF = httpx.Timeout(60, read=0.3)


def body(*rules: dict[str, Any]) -> dict[str, str]:
    return {"prompt": f"a cat {directive({'take_seconds': 0}, *rules)}", "aspect_ratio": "1:1"}


def submit_fault(fault: str, **arguments: Any) -> dict[str, str]:
    """The body of a submit with this fault."""
    return body({"where": "submit", "fault": fault} | arguments)


def stream(sandbox: Server, fault: str):
    return sandbox.client.stream("POST", f"{ACTION}/async", json=submit_fault(fault), timeout=60)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_faults_of_the_connection_work_under_every_uvicorn(serving, loop: str, http: str) -> None:
    with serving(loop=loop, http=http) as sandbox:
        with pytest.raises(httpx.ReadError, match="reset"):
            sandbox.client.post(f"{ACTION}/async", json=submit_fault("reset"))
        faults = {"fault": "truncated", "times": 1}, {"fault": "lies-about-length"}
        url = sandbox.finish("a " + directive({"take_seconds": 0}, *faults))["result_urls"][0]
        with pytest.raises(httpx.RemoteProtocolError, match="without sending complete"):
            sandbox.fetch(url)
        assert len(sandbox.fetch(url).content) == 100
        assert len(sandbox.journal(outcome="accepted")) == 2


def test_a_submit_that_is_reset_makes_a_job(sandbox: Server) -> None:
    with pytest.raises(httpx.ReadError):
        sandbox.client.post(f"{ACTION}/async", json=submit_fault("reset"))
    (entry,) = sandbox.journal(outcome="accepted")
    assert (entry["fault"], entry["status"]) == ("submit reset", None)
    assert sandbox.poll(entry["task_id"]).json()["status"] == "SUCCESS"


def test_poll_and_result_resets_end_after_their_number(sandbox: Server) -> None:
    resets = ({"where": place, "fault": "reset", "times": 1} for place in ("poll", "result"))
    task_id = sandbox.submit("a " + directive({"take_seconds": 0}, *resets)).json()["task_id"]
    with pytest.raises(httpx.ReadError):
        sandbox.poll(task_id)
    url = sandbox.poll(task_id).json()["result_urls"][0]
    with pytest.raises(httpx.ReadError):
        sandbox.fetch(url)
    assert sandbox.fetch(url).status_code == 200


def test_hanging_forever_and_for_some_seconds(sandbox: Server) -> None:
    with pytest.raises(httpx.ReadTimeout):
        sandbox.client.post(f"{ACTION}/async", json=submit_fault("hang"), timeout=BRIEF)
    started = time.monotonic()
    assert "task_id" in sandbox.client.post(f"{ACTION}/async", json=submit_fault("hang", seconds=0.3)).json()
    assert time.monotonic() - started >= 0.3
    assert len(sandbox.journal(outcome="accepted")) == 2


def test_the_blocking_form_of_an_endless_job(sandbox: Server) -> None:
    with pytest.raises(httpx.ReadTimeout):
        sandbox.client.post(ACTION, json=body({"end": "never"}), timeout=BRIEF)


def test_a_drip_is_one_byte_a_second(sandbox: Server) -> None:
    started, received = time.monotonic(), b""
    with stream(sandbox, "drip") as answer:
        for chunk in answer.iter_raw():
            received += chunk
            if len(received) >= 2:
                break
    assert received == b'{"'
    assert int(answer.headers["content-length"]) > 50
    assert time.monotonic() - started >= 0.9


def test_a_huge_answer_is_sent_only_as_fast_as_it_is_read(sandbox: Server) -> None:
    received = 0
    with stream(sandbox, "huge") as answer:
        for chunk in answer.iter_raw():
            received += len(chunk)
            if received > 8 << 20:
                break
    assert "content-length" not in answer.headers
    assert sandbox.client.get("/api/v1/me").status_code == 200


def test_the_gzip_bomb_unpacks_to_a_thousand_times_its_size(sandbox: Server) -> None:
    received, unpacked, unpack = 0, 0, zlib.decompressobj(31)
    with stream(sandbox, "gzip-bomb") as answer:
        assert answer.headers["content-encoding"] == "gzip"
        for chunk in answer.iter_raw():
            received += len(chunk)
            unpacked += len(unpack.decompress(chunk))
            if unpacked > 64 << 20:
                break
    assert received < 1 << 20


@pytest.mark.anyio
@pytest.mark.full
async def test_the_gzip_bomb_is_valid() -> None:
    parts = [part async for part in _gzip_bomb()]
    assert sum(map(len, parts)) < 3 << 20
    unpack, unpacked = zlib.decompressobj(31), 0
    for part in parts:
        unpacked += len(unpack.decompress(part))
    assert (unpacked, unpack.eof) == (HUGE_BYTES, True)
    assert gzip.compress(b"")[:2] == parts[0][:2]


@pytest.mark.anyio
async def test_without_a_socket_a_reset_is_a_connection_error() -> None:
    from app.sandbox import create_sandbox

    transport = httpx.ASGITransport(create_sandbox(api_key="k"))
    async with httpx.AsyncClient(transport=transport, base_url="http://s") as client:
        with pytest.raises(ConnectionResetError):
            await client.post(f"{ACTION}/async", json=submit_fault("reset"), headers={"authorization": "Bearer k"})
