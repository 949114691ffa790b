"""Callers during a storm: they repeat, submit twice at once, hang up, cancel, and run out of points.

Every submit contains a unique word that identifies its task and its job at SEE2AI. With an idempotency key all
repeats have the same word. Without one each attempt has a new word, because each attempt may become a task.
"""

import asyncio
import contextlib
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

SUBMIT = "/user/ai/tasks/submit"
TIMEOUT_SECONDS = 10.0
PERSISTENCE_SECONDS = 90.0  # how long a submit is repeated
POLL_SECONDS = 0.25
TOO_SHORT_SECONDS = 0.02  # the timeout of a caller that hangs up at once

# Model, its share, and what it needs.
MODELS: tuple[tuple[str, float, str], ...] = (
    ("sc_soraimg_text_1x1", 0.55, ""),
    ("sc_soraimg_text_2x3", 0.15, ""),
    ("sc_soraimg_text_auto", 0.10, ""),
    ("sc_soraimg_img2img_1x1", 0.06, "foreign image"),
    ("sc_soraimg_img2img_3x2", 0.02, "own image"),
    ("sc_uniworld_text_1x1", 0.06, ""),
    ("sc_image_normalize", 0.04, "foreign image"),
    ("sc_video_text_fast", 0.02, "video"),
)
# Directives for the job, by share. All other jobs succeed.
JOBS: tuple[tuple[str, float], ...] = (
    ('[[sandbox: {"end": "failed"}]]', 0.03),
    ('[[sandbox: {"end": "never"}]]', 0.01),
    ('[[sandbox: {"take_seconds": 12}]]', 0.02),
    ('[[sandbox: {"polls_without_url": 1}]]', 0.01),
)


@dataclass
class User:
    """A caller with points. `images` are the references that the user has uploaded."""

    id: int
    headers: dict[str, str]
    images: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Timing:
    """One submit or read: when it began, how long it took, and whether it was answered as it should be."""

    began: float
    seconds: float
    is_answered: bool


@dataclass
class Diary:
    """The answers that the callers got."""

    answers: Counter[str] = field(default_factory=Counter)
    payload: dict[str, set[str]] = field(default_factory=dict)  # word -> task numbers of its 200 answers
    keyed: set[str] = field(default_factory=set)  # words of submits with a key
    unknown: int = 0  # submits without a key whose answer was lost, and which were not repeated
    given_up: int = 0
    cancelled: set[str] = field(default_factory=set)  # numbers of the tasks whose cancel was answered with 200
    accepted_at: list[float] = field(default_factory=list)
    alive_at: list[float] = field(default_factory=list)
    timings: list[Timing] = field(default_factory=list)

    @property
    def accepted(self) -> int:
        return len(self.payload)

    def longest_gap(self, moments: list[float]) -> float:
        return max((later - earlier for earlier, later in itertools.pairwise(moments)), default=0.0)


class Callers:
    """Submits until `target` tasks are accepted, spread over `seconds`; longer if faults delay it."""

    def __init__(
        self, origins: list[str], users: list[User], *, seed: int, run: str, poor: Callable[[User], None]
    ) -> None:
        self.diary = Diary()
        self._origins = origins
        self._users = users
        self._chance = random.Random(f"callers {seed}")
        self._run = run
        self._poor = poor
        self._client = httpx.AsyncClient(timeout=TIMEOUT_SECONDS, trust_env=False)
        self._number = 0
        self._began = 0.0
        self._aside: set[asyncio.Task[None]] = set()

    async def run(self, target: int, seconds: float, *, at_once: int = 40) -> None:
        self._began = time.monotonic()
        probe = asyncio.create_task(self._probe())
        loops = [self._loop(target, seconds) for _ in range(at_once)]
        async with self._client:
            await asyncio.gather(*loops)
            await asyncio.gather(*self._aside, return_exceptions=True)
            probe.cancel()
            await asyncio.wait([probe])

    async def _loop(self, target: int, seconds: float) -> None:
        while (passed := time.monotonic() - self._began) < 2 * seconds:
            if self.diary.accepted >= target and passed >= seconds:
                return
            if self._number < self._due(target, seconds):
                self._number += 1
                await self._submit(self._number)
            else:
                await asyncio.sleep(0.1)

    def _due(self, target: int, seconds: float) -> float:
        """How many submits may have started by now. Refused and lost submits are replaced."""
        lost = self._number - self.diary.accepted
        return target * min((time.monotonic() - self._began) / seconds, 1.0) * 1.01 + min(lost, target * 0.5) + 1

    # ------------------------------------------------------------------ one submit

    async def _submit(self, number: int) -> None:
        user = self._chance.choice(self._users)
        is_keyed = self._chance.random() < 0.7
        body, job = self._body(user)
        end, attempt = time.monotonic() + PERSISTENCE_SECONDS, 0
        while time.monotonic() < end:
            attempt += 1
            word = f"{self._run}-{number:05d}." + ("" if is_keyed else f"{attempt}.")
            if is_keyed:
                self.diary.keyed.add(word)
            wait = await self._try(user, word, _with_word(body, word, job), is_keyed)
            if wait is None:
                return
            await asyncio.sleep(wait)
        self.diary.given_up += 1

    async def _try(self, user: User, word: str, body: dict[str, Any], is_keyed: bool) -> float | None:
        """One attempt, or two at once. Returns the seconds until the next one; None if there is none."""
        twice = is_keyed and self._chance.random() < 0.06
        waits = await asyncio.gather(
            *[self._send_request(user, word, body, is_keyed) for _ in range(2 if twice else 1)]
        )
        return None if None in waits else max(wait for wait in waits if wait is not None)

    async def _send_request(self, user: User, word: str, body: dict[str, Any], is_keyed: bool) -> float | None:
        headers = user.headers | ({"Idempotency-Key": word} if is_keyed else {})
        patience = TOO_SHORT_SECONDS if is_keyed and self._chance.random() < 0.03 else TIMEOUT_SECONDS
        url, began = self._chance.choice(self._origins) + SUBMIT, time.monotonic()
        try:
            answer = await self._client.post(url, json=body, headers=headers, timeout=patience)
        except httpx.TransportError as error:
            if patience == TIMEOUT_SECONDS:
                self._time(began, is_answered=False)
            self.diary.answers[f"submit: {type(error).__name__}"] += 1
            if is_keyed or isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
                return self._chance.uniform(0.1, 1.0)
            self.diary.unknown += 1
            return None
        self._time(began, is_answered=answer.status_code in {200, 402})
        self.diary.answers[f"submit: {answer.status_code}"] += 1
        if answer.status_code == 200:
            self._accepted(user, word, answer.json()["data"]["taskNo"])
            return None
        if answer.status_code == 402:
            self._poor(user)
            return None
        if answer.status_code in {429, 503}:
            return min(float(answer.headers["retry-after"]), 3.0) * self._chance.uniform(0.5, 1.0)
        self.diary.answers[f"submit: {answer.status_code} {answer.text[:200]}"] += 1
        return None

    def _time(self, began: float, *, is_answered: bool) -> None:
        self.diary.timings.append(Timing(began, time.monotonic() - began, is_answered))

    def _accepted(self, user: User, word: str, task_no: str) -> None:
        self.diary.accepted_at.append(time.monotonic())
        self.diary.payload.setdefault(word, set()).add(task_no)
        dice = self._chance.random()
        if dice < 0.06:
            self._run_aside(self._cancel(user, task_no))
        elif dice < 0.16:
            self._run_aside(self._poll(user, f"/user/ai/tasks/{task_no}?wait=5", "poll"))
        elif dice < 0.20:
            self._run_aside(self._poll(user, "/user/ai/tasks/list", "list"))

    def _run_aside(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._aside.add(task)
        task.add_done_callback(self._aside.discard)

    def _body(self, user: User) -> tuple[dict[str, Any], str]:
        names, shares = [model for model, _, _ in MODELS], [share for _, share, _ in MODELS]
        model = self._chance.choices(names, shares)[0]
        wants = next(wants for name, _, wants in MODELS if name == model)
        body: dict[str, Any] = {"modelName": model}
        if wants == "video":
            body["params"] = {"duration": 4, "resolution": "480p"}
        if wants == "own image" and user.images:
            body["imageUrl"] = self._chance.choice(user.images)
        elif wants.endswith("image"):
            body["imageUrl"] = "https://example.com/a.jpg"
        dice = self._chance.random()
        for job, share in JOBS:
            if dice < share:
                return body, "" if model == "sc_image_normalize" else job
            dice -= share
        return body, ""

    # ------------------------------------------------------------------ other requests

    async def _cancel(self, user: User, task_no: str) -> None:
        answer = await self._poll(user, f"/user/ai/tasks/{task_no}/cancel", "cancel", "POST")
        if answer == 200:
            self.diary.cancelled.add(task_no)

    async def _poll(self, user: User, path: str, name: str, method: str = "GET") -> int:
        url = self._chance.choice(self._origins) + path
        try:
            answer = await self._client.request(method, url, headers=user.headers, timeout=15)
        except httpx.TransportError as error:
            self.diary.answers[f"{name}: {type(error).__name__}"] += 1
            return 0
        self.diary.answers[f"{name}: {answer.status_code}"] += 1
        return answer.status_code

    async def _probe(self) -> None:
        """Records the times when an API answered a request that reads the database."""
        self.diary.alive_at.append(time.monotonic())
        requesting: set[asyncio.Task[None]] = set()
        while True:
            for origin in self._origins:
                task = asyncio.create_task(self._probe_one(origin))
                requesting.add(task)
                task.add_done_callback(requesting.discard)
            await asyncio.sleep(POLL_SECONDS)

    async def _probe_one(self, origin: str) -> None:
        url, began, is_answered = origin + "/user/points/consumption/balance", time.monotonic(), False
        with contextlib.suppress(httpx.TransportError, RuntimeError):
            answer = await self._client.get(url, headers=self._users[0].headers, timeout=2)
            if is_answered := answer.status_code == 200:
                self.diary.alive_at.append(time.monotonic())
        self._time(began, is_answered=is_answered)


def _with_word(body: dict[str, Any], word: str, job: str) -> dict[str, Any]:
    """The word is in the prompt, or in the image URL for a model without a prompt."""
    if body["modelName"] == "sc_image_normalize":
        return body | {"imageUrl": f"https://example.com/{word}.jpg"}
    return body | {"prompt": f"{word} 一只柴犬 {job}".strip()}
