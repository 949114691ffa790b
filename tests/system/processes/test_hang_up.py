"""Callers close the connection at every moment of a submit and repeat it: one task for each key, paid once."""

import asyncio
import contextlib
import json
import socket
import struct
import time
from pathlib import Path
from typing import Any

import httpx

from app.accounts.api_keys import create_key
from tests.support.makers import TEXT_MODEL
from tests.support.ports import free_port
from tests.support.processes.books import accepted, environment, open_books
from tests.support.processes.process import Processes
from tests.support.sandbox_server import Server
from tests.support.services import RealServices, own_database

PUBLIC_PREFIXES = 40


def test_one_task_however_the_answer_is_lost(
    real_services: RealServices, sandbox_server: Server, tmp_path: Path
) -> None:
    port = free_port()
    with own_database() as url:
        env = environment(real_services, sandbox_server, url) | {"port": port}
        with Processes(tmp_path, env) as processes:
            api = processes.gateway("serve").answers(f"http://127.0.0.1:{port}/healthz")
            worker = processes.worker()
            asyncio.run(_run(env, port, sandbox_server))
            assert [api.terminate(), worker.terminate()] == [0, 0]
            assert "Traceback" not in api.log()


async def _run(env: dict[str, Any], port: int, sandbox: Server) -> None:
    async with open_books(env, points=30 * 2 * PUBLIC_PREFIXES) as books:
        key = await create_key(books.runtime.database, books.user_id)
        words = [f"hang-up-{number:02d}-" for number in range(PUBLIC_PREFIXES)]
        began = time.monotonic()
        whole = await _submit(port, key, "answered-")
        seconds = time.monotonic() - began
        for number, word in enumerate(words):  # the first closes at once, the last after twice the time of a submit
            await asyncio.to_thread(_hang_up, port, key, word, 2 * seconds * number / PUBLIC_PREFIXES)
        once_more = {word: await _submit(port, key, word) for word in words}
        replayed = sum(answer.headers.get("idempotency-replayed") == "true" for answer in once_more.values())
        assert replayed > 0, "no caller closed the connection after the commit"
        rows = await books.all_ended()
        assert {row["status"] for row in rows} == {"completed"}
        assert sorted(row["task_no"] for row in rows) == sorted(
            answer.json()["data"]["taskNo"] for answer in [whole, *once_more.values()]
        )
        for word in words:
            assert len(accepted(sandbox, word)) == 1, word
        await books.prove()


def _hang_up(port: int, key: str, word: str, seconds: float) -> None:
    """Sends a whole submit, waits a short time and resets the connection."""
    body = json.dumps(_body(word)).encode()
    head = f"POST /user/ai/tasks/submit HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\nIdempotency-Key: {word}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.sendall(head.encode() + body)
        connection.settimeout(seconds or 1e-6)
        with contextlib.suppress(TimeoutError):
            connection.recv(1)


async def _submit(port: int, key: str, word: str) -> httpx.Response:
    headers = {"X-API-Key": key, "Idempotency-Key": word}
    async with httpx.AsyncClient(headers=headers, timeout=60, trust_env=False) as client:
        answer = await client.post(f"http://127.0.0.1:{port}/user/ai/tasks/submit", json=_body(word))
    assert answer.status_code == 200, answer.text
    return answer


def _body(word: str) -> dict[str, Any]:
    return {"modelName": TEXT_MODEL, "prompt": f'{word} [[sandbox: {{"take_seconds": 0.1}}]]'}
