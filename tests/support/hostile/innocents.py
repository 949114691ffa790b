"""Users who do nothing wrong, and what they notice of those who do."""

import asyncio
import io
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from PIL import Image

from tests.support.hostile.attacks import AUTO_MODEL, LIST, MODEL, SUBMIT, UPLOAD

TASK_SECONDS = 60.0
REQUEST_SECONDS = 20.0
PAUSE_SECONDS = 0.3
QUICK = '[[sandbox: {"take_seconds": 0.2}]]'


@dataclass(frozen=True)
class Experience:
    """One request or one whole task: how long it took, and what went wrong, if anything did."""

    kind: str
    began: float
    seconds: float
    fault: str = ""


class Innocents:
    """Each user reads, submits, waits for the end, and uploads small pictures, over and over."""

    def __init__(self, origin: str, users: list[dict[str, str]]) -> None:
        self.experiences: list[Experience] = []
        self._users = users
        self._client = httpx.AsyncClient(base_url=origin, timeout=REQUEST_SECONDS, trust_env=False)
        file = io.BytesIO()
        Image.new("RGB", (64, 48), "teal").save(file, "WEBP")  # it has to be converted
        self._picture = file.getvalue()

    @asynccontextmanager
    async def living(self) -> AsyncIterator[None]:
        """They go on while the block runs. What was begun is ended, so that no fault is overlooked."""
        over = asyncio.Event()
        lives = [asyncio.create_task(self._live(headers, number, over)) for number, headers in enumerate(self._users)]
        async with self._client:
            try:
                yield
            finally:
                over.set()
                await asyncio.gather(*lives)

    async def _live(self, headers: dict[str, str], number: int, over: asyncio.Event) -> None:
        turn = number
        while not over.is_set():
            await self._send("read", "GET", "/user/points/consumption/balance", headers)
            await self._send("read", "GET", LIST, headers)
            picture = None
            if turn % 4 == 0:
                uploaded = await self._send(
                    "upload", "POST", UPLOAD, headers, files={"file": ("a.webp", self._picture)}
                )
                picture = uploaded and uploaded["url"]
            await self._task(headers, picture)
            turn += 1
            await asyncio.sleep(PAUSE_SECONDS)

    async def _task(self, headers: dict[str, str], picture: str | None) -> None:
        began = time.monotonic()
        body = {"modelName": AUTO_MODEL if picture else MODEL, "prompt": QUICK}
        task = await self._send(
            "submit", "POST", SUBMIT, headers, json=body | ({"imageUrl": picture} if picture else {})
        )
        while task is not None and task["status"] not in {"completed", "failed"}:
            if time.monotonic() > began + TASK_SECONDS:
                break
            path = f"/user/ai/tasks/{task['taskNo']}"
            task = await self._send("wait", "GET", path, headers, params={"wait": 10}) or task
        fault = (
            "" if task and task["status"] == "completed" else f"{task and task['status']} {task and task['errorCode']}"
        )
        self._note("task", began, fault)

    async def _send(self, kind: str, method: str, path: str, headers: dict[str, str], **content: Any) -> Any:
        began = time.monotonic()
        try:
            answer = await self._client.request(method, path, headers=headers, **content)
        except httpx.HTTPError as error:
            self._note(kind, began, type(error).__name__)
            await asyncio.sleep(PAUSE_SECONDS)
            return None
        fault = "" if answer.status_code == 200 else f"{answer.status_code} {answer.text[:200]}"
        self._note(kind, began, fault)
        return answer.json()["data"] if answer.status_code == 200 else None

    def _note(self, kind: str, began: float, fault: str) -> None:
        self.experiences.append(Experience(kind, began, time.monotonic() - began, fault))


def faults(experiences: list[Experience]) -> Counter[str]:
    return Counter(f"{one.kind}: {one.fault}" for one in experiences if one.fault)


def p95(experiences: list[Experience], is_counted: Callable[[str], bool]) -> float:
    """Seconds below which 95 of 100 lie; of those kinds."""
    seconds = [one.seconds for one in experiences if is_counted(one.kind)]
    assert len(seconds) > 1, "too few to say anything"
    return statistics.quantiles(seconds, n=20)[-1]
