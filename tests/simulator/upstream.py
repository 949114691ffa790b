"""A simulated SEE2AI with its own record of the jobs it accepted, independent of what the gateway received.

The gateway's own client calls it (timeouts, reading of answers, `may_send`); only the HTTP exchange is replaced.
A job is accepted when the request has arrived, even if its sender is dead by then.
"""

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import httpx

from app.upstreams.see2ai import client
from app.upstreams.see2ai.actions import ACTIONS, NORMALIZE
from app.upstreams.see2ai.client import CONNECT_SECONDS, UPLOAD_PATH, See2aiClient
from app.upstreams.see2ai.responses import HttpResponse
from tests.simulator.weather import Weather

SUBMITS = {action.submit_path: action for action in ACTIONS.values()}
ME = "/api/v1/me"


@dataclass(slots=True)
class Job:
    """One accepted generation. `send_request` identifies its task: the prompt, or the picture's link."""

    send_request: str
    id: str
    ends_at: float
    fate: str
    empties: int = 0


class Upstream:
    """`sent` holds for each accepted job the state of its task when the request was sent. The judge checks it.

    A request sent before the end of its task may be accepted after it. That is no violation.
    """

    def __init__(self, weather: Weather, stands: Callable[[str], tuple[str, str] | None]) -> None:
        self.weather = weather
        self.stands = stands
        self.is_away = False
        self.refuses_key = False
        self.poison = ""
        self.sent: defaultdict[str, list[tuple[str, str] | None]] = defaultdict(list)
        self.excused: set[str] = set()  # submits that it accepted but answered with 504
        self.jobs: dict[str, Job] = {}
        self._links = 0

    async def exchange(self, method: str, path: str, body: dict[str, Any]) -> HttpResponse:
        weather = self.weather
        await self._connect()
        if method == "POST" and path in SUBMITS:
            return await self._submit(path, body["json"])
        if weather.strikes("up.slow"):
            await asyncio.sleep(weather.between(3, 40))
        if method == "POST" and path == UPLOAD_PATH:
            return await self._upload()
        if path == ME:
            return self._refusal("up.poll_") or _json({"name": "we", "balance": 100})
        return await self._poll(path.rsplit("/", 1)[1])

    async def _connect(self) -> None:
        """Before this returns nothing is sent. Nothing is sent at all if the lease has ended meanwhile."""
        weather = self.weather
        if weather.strikes("up.slow_connect"):
            await asyncio.sleep(weather.between(1, CONNECT_SECONDS - 0.1))
        await weather.cross("up.connect", 0.1)
        if weather.strikes("up.refused") or self.is_away:
            error = httpx.ConnectError("refused")
            key: Any = SimpleNamespace(host="see2ai", port=443, ssl=True)
            raise error from aiohttp.ClientConnectorError(key, OSError("refused"))
        attempt = client._attempt.get()
        if attempt is not None:
            try:
                attempt.require_permission()
            except client._LeaseExpired:
                weather.note("up.lease_over")
                raise
            attempt.begin()

    async def _submit(self, path: str, request: dict[str, Any]) -> HttpResponse:
        weather, is_normalize = self.weather, path == NORMALIZE.submit_path
        send_request = str(request["image_url"] if is_normalize else request["prompt"])
        stood = self.stands(send_request)
        refusal = self._refusal("up.submit_")
        if refusal is not None:
            await weather.cross("up.answer", 0.2)
            return refusal
        if weather.strikes("up.lost_before"):
            raise httpx.ReadError("lost on the way there")
        for kind, answer in (
            ("up.submit_504", HttpResponse(504, b"")),
            ("up.submit_302", HttpResponse(302, b"")),
            ("up.submit_garbage", HttpResponse(200, weather.rng.choice([b"<html>", b"{}", b'{"task_id": null}']))),
        ):
            if weather.strikes(kind):
                if weather.rng.random() < 0.5:
                    self._accept(send_request, stood)
                    self.excused |= {send_request} if answer.status == 504 else set()
                return answer
        job = await self._arrive(send_request, stood)
        if weather.strikes("up.accept_lost"):
            await weather.cross("up.accepted", 0.2)
            raise httpx.ReadError("lost on the way back")
        if weather.strikes("up.accept_hangs"):
            await asyncio.sleep(weather.between(61, 90))
        if weather.strikes("up.accept_slow"):
            await asyncio.sleep(weather.between(5, 58))
        await weather.cross("up.accepted", 0.2)
        if is_normalize:
            return _json({"status": "success", "normalized_url": self._link()})
        return _json({"task_id": job.id, "status": "queued"})

    async def _arrive(self, send_request: str, stood: tuple[str, str] | None) -> Job:
        """The request arrives sooner or later, even if its sender is killed meanwhile."""
        if not self.weather.strikes("up.accept_late"):
            return self._accept(send_request, stood)
        loop = asyncio.get_running_loop()
        arrived: asyncio.Future[Job] = loop.create_future()

        def arrive() -> None:
            job = self._accept(send_request, stood)
            if not arrived.done():
                arrived.set_result(job)

        loop.call_later(
            self.weather.between(0.1, self.weather.rng.choice([3, 55])), arrive, context=self.weather.context
        )
        await self.weather.cross("up.sent")
        return await arrived

    def _accept(self, send_request: str, stood: tuple[str, str] | None) -> Job:
        weather, now = self.weather, asyncio.get_running_loop().time()
        known = list(self.jobs)
        identity = f"job-{len(known) + 1}"
        if known and weather.strikes("up.reused_id"):
            identity = weather.rng.choice(known)
        fate, ends_at = "success", now + weather.between(0, 20)
        for kind in ("job.fails", "job.needs_repair", "job.approval", "job.empty", "job.endless"):
            if weather.strikes(kind):
                fate = kind.removeprefix("job.")
        if weather.strikes("job.late"):
            ends_at += weather.between(60, 300)
        job = Job(send_request, identity, ends_at, fate)
        self.jobs.setdefault(identity, job)
        self.sent[send_request].append(stood)
        weather.send(f"SEE2AI accepts {send_request} as {identity}; when it was sent the books said {stood}")
        return job

    def _refusal(self, prefix: str) -> HttpResponse | None:
        weather = self.weather
        if self.refuses_key or weather.strikes(f"{prefix}401"):
            return HttpResponse(weather.rng.choice([401, 402, 403]), b'{"detail": "no"}')
        if weather.strikes(f"{prefix}429"):
            return HttpResponse(429, b"", weather.rng.choice([None, 0.5, 7.0]))
        if weather.strikes(f"{prefix}500"):
            return HttpResponse(weather.rng.choice([500, 502, 503]), b"<html>")
        if prefix == "up.submit_" and weather.strikes("up.submit_400"):
            return HttpResponse(422, b'{"detail": "bad"}')
        return None

    async def _upload(self) -> HttpResponse:
        refusal = self._refusal("up.submit_")
        await self.weather.cross("up.answer", 0.2)
        return refusal or _json({"url": self._link()})

    async def _poll(self, identity: str) -> HttpResponse:
        weather = self.weather
        job = self.jobs.get(identity)
        if job is not None and self.poison and job.send_request.startswith(self.poison):
            weather.note("poison")
            weather.on_kill()
            await weather.cross("up.poison")
        if weather.strikes("up.poll_lost"):
            raise httpx.ReadError("lost")
        if weather.strikes("up.poll_hangs"):
            await asyncio.sleep(weather.between(31, 50))
        refusal = self._refusal("up.poll_")
        await weather.cross("up.answer", 0.2)
        if refusal is not None:
            return refusal
        if job is None or weather.strikes("up.poll_404"):
            return HttpResponse(404, b'{"detail": "unknown"}')
        if weather.strikes("up.poll_html"):
            return HttpResponse(200, b"<html>wait</html>")
        if weather.strikes("up.poll_other_id"):
            return _json({"task_id": "job-of-others", "status": "failed"})
        if weather.strikes("up.poll_word"):
            return _json({"task_id": identity, "status": "dreaming"})
        return self._state_of(job)

    def _state_of(self, job: Job) -> HttpResponse:
        payload: dict[str, Any] = {"task_id": job.id}
        if job.fate == "endless" or asyncio.get_running_loop().time() < job.ends_at:
            word = "awaiting_user_approval" if job.fate == "approval" else "running"
            return _json(payload | {"status": word, "progress": self.weather.rng.choice([None, 10, 80])})
        if job.fate in {"fails", "approval"}:
            return _json(payload | {"status": "failed", "error_message": "no"})
        if job.fate == "needs_repair":
            return HttpResponse(422, json.dumps(payload | {"status": "needs_repair"}).encode())
        job.empties += job.fate == "empty"
        if 0 < job.empties < 8 and job.empties != 4:
            return _json(payload | {"status": "success"})
        return _json(payload | {"status": "success", "result_urls": [self._link()]})

    def _link(self) -> str:
        self._links += 1
        return f"https://cdn.example.com/{self._links}.png"


def _json(body: dict[str, Any]) -> HttpResponse:
    return HttpResponse(200, json.dumps(body).encode())


def see2ai_of(upstream: Upstream) -> type[See2aiClient]:
    """The gateway's own client with a simulated HTTP exchange."""

    class Simulated(See2aiClient):
        def __init__(self, _settings: Any) -> None:
            self._fresh = self._kept = None  # type: ignore[assignment]
            self._logged_states: set[str] = set()

        async def _send(self, path: str, **body: Any) -> HttpResponse:
            return await upstream.exchange("POST", path, body)

        async def _get(self, path: str) -> HttpResponse:
            """aiohttp's errors, which a GET raises: httpx would wrap the same ones."""
            try:
                return await upstream.exchange("GET", path, {})
            except httpx.ConnectError as error:
                raise cast(aiohttp.ClientConnectorError, error.__cause__) from None
            except httpx.ReadError as error:
                raise aiohttp.ClientPayloadError(str(error)) from error

        async def close(self) -> None: ...

    return Simulated
