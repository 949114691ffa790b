"""A sandbox over a real socket: uvicorn in a thread, on a port of its own."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx
import uvicorn

from app.sandbox import create_sandbox
from app.sandbox.rules.rule_set import RuleSet
from app.sandbox.state import SandboxState

KEY = "sk-sandbox-test"
ACTIONS = "/api/v1/actions"
ACTION = f"{ACTIONS}/see2ai_image_generation_fast_v1"
UNIWORLD = f"{ACTIONS}/see2ai_image_uniworld_v2"
VIDEO = f"{ACTIONS}/see2ai_video_generation_v1"
NORMALIZE = f"{ACTIONS}/see2ai_image_normalize_v1"
UPLOAD = f"{ACTIONS}/see2ai_storage_upload_v1"
RUNNING = {"pending", "running"}


def directive(*rules: dict[str, Any]) -> str:
    """The rules as a directive of a prompt."""
    return f"[[sandbox: {_json(rules)}]]"


def url_with_rules(url: str, *rules: dict[str, Any]) -> str:
    """The rules in the image URL of a normalize call."""
    return f"{url}?sandbox={quote(_json(rules))}"


def _json(rules: tuple[dict[str, Any], ...]) -> str:
    return json.dumps(rules[0] if len(rules) == 1 else rules, ensure_ascii=False)


@dataclass(frozen=True)
class Server:
    """A running sandbox, and the calls that nearly every test makes."""

    origin: str
    client: httpx.Client
    state: SandboxState

    def forget(self) -> None:
        """No rules and no request log any more. Without a request: nearly every test begins and ends with this."""
        self.state.request_log.clear()
        self.state.control = RuleSet()

    def submit(self, prompt: str, **fields: Any) -> httpx.Response:
        return self.client.post(f"{ACTION}/async", json={"prompt": prompt, "aspect_ratio": "1:1"} | fields)

    def poll(self, task_id: str) -> httpx.Response:
        return self.client.get(f"{ACTION}/status/{task_id}")

    def finish(self, prompt: str, **fields: Any) -> dict[str, Any]:
        """Submits, and polls until the job has ended. Returns the last answer."""
        task_id = self.submit(prompt, **fields).raise_for_status().json()["task_id"]
        for _ in range(2000):
            answer = self.poll(task_id)
            if answer.status_code == 200 and answer.json()["state"].lower() not in {"pending", "running"}:
                return answer.json()
            time.sleep(0.02)
        raise AssertionError("the job did not end")

    def post(self, action: str, **body: Any) -> httpx.Response:
        return self.client.post(action, json=body)

    def poll_action(self, action: str, task_id: str) -> httpx.Response:
        return self.client.get(f"{action}/status/{task_id}")

    def make(self, action: str, **body: Any) -> dict[str, Any]:
        """Submits to any asynchronous action, and polls until the job has ended. Returns the last answer."""
        task_id = self.post(action, **body).raise_for_status().json()["task_id"]
        for _ in range(2000):
            answer = self.poll_action(action, task_id).json()
            if (answer.get("state") or answer.get("status")).lower() not in RUNNING:
                return answer
            time.sleep(0.02)
        raise AssertionError("the job did not end")

    def fetch(self, url: str) -> httpx.Response:
        """Fetches the picture without the key."""
        return httpx.get(url, timeout=60)

    def journal(self, **query: str) -> list[dict[str, Any]]:
        return self.client.get("/journal", params=query).json()

    def control(self, *rules: dict[str, Any]) -> None:
        self.client.post("/control", json=list(rules)).raise_for_status()


@contextlib.contextmanager
def serve(loop: str = "auto", http: str = "auto", **settings: Any) -> Iterator[Server]:
    app = create_sandbox(**{"api_key": KEY, "seconds_scale": 0.05} | settings)
    config = uvicorn.Config(
        app,
        port=0,
        log_level="critical",
        loop=loop,
        http=http,
        timeout_graceful_shutdown=0,
        timeout_keep_alive=3600,  # else an idle connection may close just as the client uses it again
        lifespan="off",
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    origin = f"http://127.0.0.1:{port}"
    with httpx.Client(base_url=origin, headers={"authorization": f"Bearer {KEY}"}, timeout=60) as client:
        yield Server(origin, client, app.state.sandbox)
    server.should_exit = True
    thread.join(5)
