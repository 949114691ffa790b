"""What many tests need: users with points, submits, waits."""

import asyncio
import itertools
import time
from dataclasses import dataclass
from typing import Any

import httpx

from app.accounts.api_keys import create_key
from app.accounts.credentials import sign_token
from app.accounts.users import create_user
from app.points import ledger
from app.runtime import Runtime
from tests.support.waiting import pauses

_numbers = itertools.count(1)
TEXT_MODEL = "sc_soraimg_text_1x1"
IMAGE_MODEL = "sc_soraimg_img2img_1x1"


@dataclass(frozen=True)
class User:
    """A user of one test. `headers` carry a JWT, `key_headers` an API key."""

    id: int
    headers: dict[str, str]
    key_headers: dict[str, str]
    token: str
    api_key: str


class Maker:
    """Acts through the public API, and through the app's functions where the API has no route."""

    def __init__(self, runtime: Runtime, api: httpx.AsyncClient) -> None:
        self.runtime = runtime
        self.api = api

    async def user(self, points: int = 0, **options: Any) -> User:
        user_id = await create_user(self.runtime.database, **options)
        if points:
            await ledger.grant(self.runtime.database, user_id=user_id, points=points, ref=f"test:{next(_numbers)}")
        token = sign_token(self.runtime.settings, user_id)
        api_key = await create_key(self.runtime.database, user_id)
        return User(user_id, {"Authorization": f"Bearer {token}"}, {"X-API-Key": api_key}, token, api_key)

    async def submit(self, user: User, prompt: str = "一只可爱的柴犬", model: str = TEXT_MODEL, **fields: Any) -> Any:
        """The response. `.json()["data"]["taskNo"]` is the number of an accepted task."""
        body = {"modelName": model, "prompt": prompt} | fields
        return await self.api.post("/user/ai/tasks/submit", json=body, headers=user.headers)

    async def task_no(self, user: User, prompt: str = "一只可爱的柴犬", **fields: Any) -> str:
        """Submits, and fails if the submit is not accepted. Returns the task number."""
        answer = await self.submit(user, prompt, **fields)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["data"]["taskNo"])

    async def task(self, user: User, task_no: str) -> dict[str, Any]:
        answer = await self.api.get(f"/user/ai/tasks/{task_no}", headers=user.headers)
        assert answer.status_code == 200, answer.text
        return dict(answer.json()["data"])

    async def ended(self, user: User, task_no: str, seconds: float = 120) -> dict[str, Any]:
        """The task once it has ended. Fails if it does not end in time."""
        until, pause = time.monotonic() + seconds, pauses()
        while (task := await self.task(user, task_no))["status"] not in {"completed", "failed"}:
            assert time.monotonic() < until, f"still {task['status']} after {seconds} s: {task}"
            await asyncio.sleep(next(pause))
        return task

    async def balance(self, user: User) -> tuple[int, int]:
        """(balance, held)"""
        answer = await self.api.get("/user/points/consumption/balance", headers=user.headers)
        data = answer.json()["data"]
        return data["balance"], data["held"]
