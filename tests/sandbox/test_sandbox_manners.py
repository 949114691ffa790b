"""Bad manners over a real socket: a client must truly see what each of them promises."""

import gzip
import time
import zlib

import httpx
import pytest

from app.sandbox.trouble import HUGE_BYTES, _gzip_bomb
from tests.support.sandbox_server import ACTION, Server

BRIEF = httpx.Timeout(60, read=0.3)


def body(clauses: str) -> dict[str, str]:
    return {"prompt": f"a cat [[sandbox: take 0; {clauses}]]", "aspect_ratio": "1:1"}


def stream(sandbox: Server, clauses: str):
    return sandbox.client.stream("POST", f"{ACTION}/async", json=body(clauses), timeout=60)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_what_needs_the_connection_itself_works_under_every_uvicorn(serving, loop: str, http: str) -> None:
    with serving(loop=loop, http=http) as sandbox:
        with pytest.raises(httpx.ReadError, match="reset"):
            sandbox.client.post(f"{ACTION}/async", json=body("submit reset"))
        url = sandbox.finish("a [[sandbox: take 0; result truncated once; result lies-about-length]]")["result_urls"][0]
        with pytest.raises(httpx.RemoteProtocolError, match="without sending complete"):
            sandbox.fetch(url)
        assert len(sandbox.fetch(url).content) == 100
        assert len(sandbox.journal(outcome="accepted")) == 2


def test_a_reset_leaves_the_job_behind(sandbox: Server) -> None:
    with pytest.raises(httpx.ReadError):
        sandbox.client.post(f"{ACTION}/async", json=body("submit reset"))
    (entry,) = sandbox.journal(outcome="accepted")
    assert (entry["trouble"], entry["status"]) == ("submit reset", None)
    assert sandbox.poll(entry["task_id"]).json()["status"] == "SUCCESS"


def test_poll_and_result_resets_run_out(sandbox: Server) -> None:
    task_id = sandbox.submit("a [[sandbox: take 0; poll reset once; result reset once]]").json()["task_id"]
    with pytest.raises(httpx.ReadError):
        sandbox.poll(task_id)
    url = sandbox.poll(task_id).json()["result_urls"][0]
    with pytest.raises(httpx.ReadError):
        sandbox.fetch(url)
    assert sandbox.fetch(url).status_code == 200


def test_hanging_for_ever_and_for_a_while(sandbox: Server) -> None:
    with pytest.raises(httpx.ReadTimeout):
        sandbox.client.post(f"{ACTION}/async", json=body("submit hang"), timeout=BRIEF)
    started = time.monotonic()
    assert "task_id" in sandbox.client.post(f"{ACTION}/async", json=body("submit hang 0.3")).json()
    assert time.monotonic() - started >= 0.3
    assert len(sandbox.journal(outcome="accepted")) == 2


def test_the_blocking_form_of_an_endless_job(sandbox: Server) -> None:
    with pytest.raises(httpx.ReadTimeout):
        sandbox.client.post(ACTION, json=body("never finish"), timeout=BRIEF)


def test_dripping(sandbox: Server) -> None:
    started, received = time.monotonic(), b""
    with stream(sandbox, "submit drip") as answer:
        for chunk in answer.iter_raw():
            received += chunk
            if len(received) >= 2:
                break
    assert received == b'{"'
    assert int(answer.headers["content-length"]) > 50
    assert time.monotonic() - started >= 0.9


def test_a_huge_answer_flows_as_far_as_one_reads(sandbox: Server) -> None:
    received = 0
    with stream(sandbox, "submit huge") as answer:
        for chunk in answer.iter_raw():
            received += len(chunk)
            if received > 8 << 20:
                break
    assert "content-length" not in answer.headers
    assert sandbox.client.get("/api/v1/me").status_code == 200


def test_the_bomb_swells_a_thousandfold(sandbox: Server) -> None:
    received, swollen, unpack = 0, 0, zlib.decompressobj(31)
    with stream(sandbox, "submit gzip-bomb") as answer:
        assert answer.headers["content-encoding"] == "gzip"
        for chunk in answer.iter_raw():
            received += len(chunk)
            swollen += len(unpack.decompress(chunk))
            if swollen > 64 << 20:
                break
    assert received < 1 << 20


@pytest.mark.anyio
async def test_the_bomb_is_a_valid_gzip() -> None:
    parts = [part async for part in _gzip_bomb()]
    assert sum(map(len, parts)) < 3 << 20
    unpack, swollen = zlib.decompressobj(31), 0
    for part in parts:
        swollen += len(unpack.decompress(part))
    assert (swollen, unpack.eof) == (HUGE_BYTES, True)
    assert gzip.compress(b"")[:2] == parts[0][:2]


@pytest.mark.anyio
async def test_without_a_socket_a_reset_is_a_connection_error() -> None:
    from app.sandbox import create_sandbox

    transport = httpx.ASGITransport(create_sandbox(api_key="k"))
    async with httpx.AsyncClient(transport=transport, base_url="http://s") as client:
        with pytest.raises(ConnectionResetError):
            await client.post(f"{ACTION}/async", json=body("submit reset"), headers={"authorization": "Bearer k"})
