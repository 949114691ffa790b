"""Every model on sale, once, in real processes: on `gateway up`, and on MariaDB, Redis and S3 with separate processes.

References are uploaded first, because SEE2AI can fetch from neither gateway.
"""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from app.accounts.credentials import sign_token
from app.settings import Settings
from tests.support.ports import free_port
from tests.support.processes.books import JWT_SECRET
from tests.support.processes.process import Processes
from tests.support.services import RealServices, own_database
from tests.support.waiting import wait_until

POINTS = 10_000
SHORT = {"duration": 4, "resolution": "480p"}
IMAGES, VIDEOS = ("image/jpeg", "image/png"), ("video/mp4",)


def test_on_one_laptop(tmp_path: Path) -> None:
    port = free_port()
    env = {"port": port, "jwt_secret": JWT_SECRET}
    with Processes(tmp_path, env) as processes:
        up = processes.gateway("up").says("Stop with Ctrl-C")
        user = re.search(r"\(id (\d+)\)", up.log())
        assert user is not None
        processes.command("points", "grant", user[1], str(POINTS), "--ref", "test")
        token = sign_token(Settings(_env_file=None, **env), int(user[1]))
        with _caller(port, token) as caller:
            for task in _one_of_each(caller):
                for url in (*task["resultUrls"], *task["thumbnailUrls"]):
                    answer = httpx.get(url, headers={"Range": "bytes=0-99"}, timeout=60, trust_env=False)
                    assert (answer.status_code, len(answer.content)) == (206, 100), url
        assert up.terminate() == 0
        assert json.loads(processes.command("audit", "--json"))["ok"]


def test_on_many_machines(real_services: RealServices, tmp_path: Path) -> None:
    port, upstream_port = free_port(), free_port()
    with own_database(empty=True) as url:
        env = real_services.settings() | {
            "database_url": url,
            "see2ai_base_url": f"http://127.0.0.1:{upstream_port}",
            "see2ai_api_key": "sk-of-the-upstream",
            "egress_allow": f"127.0.0.1:{upstream_port}",
            "jwt_secret": JWT_SECRET,
            "port": port,
        }
        with Processes(tmp_path, env) as processes:
            processes.gateway("sandbox", "--port", str(upstream_port), "--api-key", "sk-of-the-upstream").answers(
                f"http://127.0.0.1:{upstream_port}/"
            )
            processes.command("migrate")
            assert json.loads(processes.command("models", "diff", "--json"))["equal"] is True
            assert processes.command("see2ai", "check")
            api = processes.gateway("serve").answers(f"http://127.0.0.1:{port}/healthz")
            processes.worker()
            user = json.loads(processes.command("users", "create", "--points", str(POINTS), "--json"))["userId"]
            token = json.loads(processes.command("users", "token", str(user), "--json"))["token"]
            with _caller(port, token) as caller:
                for task in _one_of_each(caller):
                    assert real_services.s3.endpoint in task["resultUrl"]
            assert api.terminate() == 0
            assert json.loads(processes.command("audit", "--json"))["ok"]


def _caller(port: int, token: str) -> httpx.Client:
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60, trust_env=False)


def _one_of_each(caller: httpx.Client) -> Iterator[dict[str, Any]]:
    """Submits to every model at once and waits. Each task completes, costs its quote, and has its results."""
    reference = _upload(caller)
    models = _data(caller.get("/user/ai/models"))
    assert {model["taskType"] for model in models} == {
        *("text_to_image", "image_to_image", "text_to_video", "image_to_video", "image_normalize")
    }
    before = _data(caller.get("/user/points/consumption/balance"))["balance"]
    submitted, cost = {}, 0
    for model in models:
        body: dict[str, Any] = {"modelName": model["modelName"], "prompt": "一只猫"}
        if not model["taskType"].startswith("text_to_"):
            body["imageUrl"] = reference
        if model["taskType"].endswith("video"):
            body["params"] = SHORT
        quoted = _data(caller.post("/user/ai/tasks/quote", json=body))["pointsCost"]
        task = _data(caller.post("/user/ai/tasks/submit", json=body))
        assert task["pointsCost"] == quoted
        submitted[task["taskNo"]], cost = model, cost + quoted
    for task_no, model in submitted.items():
        task = wait_until(f"{model['modelName']} ends", lambda no=task_no: _ended(caller, no), 120)
        assert (task["status"], task["errorCode"]) == ("completed", None), (model["modelName"], task)
        kinds = VIDEOS if model["taskType"].endswith("video") else IMAGES
        assert {result["type"] for result in task["results"]} <= set(kinds)
        assert (task["results"][0]["durationSeconds"] is not None) == (kinds is VIDEOS)
        yield task
    after = _data(caller.get("/user/points/consumption/balance"))
    assert (after["balance"], after["held"]) == (before - cost, 0)


def _ended(caller: httpx.Client, task_no: str) -> dict[str, Any] | None:
    task = _data(caller.get(f"/user/ai/tasks/{task_no}?wait=5"))
    return task if task["status"] in {"completed", "failed"} else None


def _upload(caller: httpx.Client) -> str:
    file = io.BytesIO()
    Image.new("RGB", (640, 480), "teal").save(file, "WEBP")
    stored = _data(caller.post("/user/files/upload", files={"file": ("ref.webp", file.getvalue())}))
    assert (stored["type"], stored["width"], stored["height"]) == ("image/jpeg", 640, 480)
    return str(stored["url"])


def _data(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]
