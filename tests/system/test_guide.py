"""The examples of the platform's guide, unchanged, against `gateway up` as a process.

`guide/` holds the examples as they are in the guide, each named with the language of its code block. The tests fill in
the token, the task number, and another port if 8081 is in use. All run at once, each for its own user.
"""

import asyncio
import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from app.accounts.credentials import sign_token
from app.accounts.users import create_user
from app.points import ledger
from app.runtime import open_runtime
from app.settings import Settings
from tests.support.ports import free_port

GUIDE = Path(__file__).with_name("guide")
GATEWAY = Path(sys.executable).with_name("gateway")
PORT = 8081
POINTS = 1000
GUIDE_TASK = "TASK-20251026153045123-4567"
TEXT, IMAGE = "sc_soraimg_text_", "sc_soraimg_img2img_"
NEW_GENERATOR = "const generator = new SuChuangImageGenerator(YOUR_JWT_TOKEN);\n"  # only the line of the guide


@dataclass(frozen=True)
class Example:
    """One run: its files in order, the models of the tasks it creates, and the texts of its output."""

    files: tuple[str, ...]
    models: tuple[str, ...] = ()
    says: tuple[str, ...] = ()
    points: int = POINTS
    changes: tuple[tuple[str, str], ...] = ()
    prelude: str = ""


SUBMITTED = ('"code":200', '"status":"created"')
EXAMPLES = {
    "curl 1:1": Example(("text_square.bash",), (f"{TEXT}1x1",), SUBMITTED),
    "curl 3:2": Example(("text_wide.bash",), (f"{TEXT}3x2",), SUBMITTED),
    "curl 2:3": Example(("text_tall.bash",), (f"{TEXT}2x3",), SUBMITTED),
    "fetch text": Example(("text_fetch.javascript",), (f"{TEXT}1x1",), ("任务编号: TASK-", "任务状态: created")),
    "requests text": Example(("text_requests.python",), (f"{TEXT}1x1",), ("任务编号: TASK-", "任务状态: created")),
    "curl one reference": Example(("image_one.bash",), (f"{IMAGE}1x1",), SUBMITTED),
    "curl references": Example(("image_list.bash",), (f"{IMAGE}3x2",), SUBMITTED),
    "fetch one reference": Example(("image_one_fetch.javascript",), (f"{IMAGE}1x1",), ("任务编号: TASK-",)),
    "fetch references": Example(("image_list_fetch.javascript",), (f"{IMAGE}1x1",)),
    "requests references": Example(("image_requests.python",), (f"{IMAGE}1x1", f"{IMAGE}3x2")),
    "polling": Example(("poll.javascript",), (f"{TEXT}1x1",), ("任务已提交: TASK-", "进度: ", "任务完成!结果: http")),
    "class": Example(
        ("generator.javascript", "generator_usage.javascript"),
        (f"{TEXT}1x1", f"{IMAGE}1x1"),
        ("任务已提交: TASK-", "图片生成完成: http", "图片转换完成: http"),
    ),
    "errors: none": Example(
        ("generator.javascript", "errors.javascript"), (f"{TEXT}1x1",), ("成功: http",), prelude=NEW_GENERATOR
    ),
    "errors: too few points": Example(
        ("generator.javascript", "errors.javascript"), (), ("请先充值积分",), points=10, prelude=NEW_GENERATOR
    ),
    "errors: bad token": Example(
        ("generator.javascript", "errors.javascript"),
        (),
        ("请先登录",),
        changes=(("YOUR_JWT_TOKEN = '", "YOUR_JWT_TOKEN = 'x"),),
        prelude=NEW_GENERATOR,
    ),
    "errors: a failed task": Example(
        ("generator.javascript", "errors.javascript"),
        (f"{TEXT}1x1",),
        ("生成失败: 生成失败", "积分已退还"),
        changes=(("测试prompt", '[[sandbox: {\\"end\\": \\"failed\\"}]]'),),
        prelude=NEW_GENERATOR,
    ),
}


SMOKE = "curl 1:1"


@dataclass(frozen=True)
class Ran:
    """The results of one run."""

    user_id: int
    token: str
    output: str
    exit_code: int


@dataclass(frozen=True)
class Gateway:
    """`gateway up`, running in its own folder."""

    port: int
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def origin(self) -> str:
        return f"http://localhost:{self.port}"

    @property
    def log(self) -> str:
        return (self.folder / "stderr.log").read_text("utf-8")

    def get(self, path: str, token: str) -> Any:
        answer = httpx.get(self.origin + path, headers={"Authorization": f"Bearer {token}"}, timeout=90)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]


def own_environment(**more: str) -> dict[str, str]:
    """An environment without this machine's settings and proxies."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR") if name in os.environ}
    return kept | {"NO_PROXY": "localhost,127.0.0.1", "PYTHONIOENCODING": "utf-8"} | more


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("guide")
    port = PORT
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", PORT))
        except OSError:
            port = free_port()
            warnings.warn(f"port {PORT} is taken: the guide's examples run against port {port}", stacklevel=1)
    with (folder / "stdout.log").open("wb") as out, (folder / "stderr.log").open("wb") as err:
        process = subprocess.Popen(
            [GATEWAY, "up"],
            cwd=folder,
            stdout=out,
            stderr=err,
            env=own_environment(PORT=str(port), LOG_LEVEL="DEBUG"),
        )
    running = Gateway(port, folder, process)
    try:
        wait_until_ready(running)
        yield running
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()


def wait_until_ready(gateway: Gateway) -> None:
    until = time.monotonic() + 90
    while time.monotonic() < until and gateway.process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{gateway.origin}/readyz").status_code == 200:
                return
        time.sleep(0.1)
    raise AssertionError(f"gateway up did not start:\n{gateway.log}")


@pytest.fixture(scope="module")
def ran(gateway: Gateway, request: pytest.FixtureRequest) -> dict[str, Ran]:
    """All examples at once, because the guide polls every 5 seconds. Without --all only the smoke test's."""
    examples = EXAMPLES if request.config.getoption("--all") else {SMOKE: EXAMPLES[SMOKE]}
    if shutil.which("node") is None and os.environ.get("CI"):
        pytest.fail("CI needs node: half of the guide is JavaScript")
    users = asyncio.run(make_users(gateway, [example.points for example in examples.values()]))
    with ThreadPoolExecutor(len(examples)) as pool:
        runs = {
            name: pool.submit(run, gateway, example, *user)
            for (name, example), user in zip(examples.items(), users, strict=True)
            if shutil.which("node") or not is_javascript(example)
        }
        return {name: future.result() for name, future in runs.items()}


async def make_users(gateway: Gateway, points: list[int]) -> list[tuple[int, str]]:
    """(id, token) of a new user for each of these numbers of points, beside the running process."""
    settings = Settings(_env_file=None, database_url=f"sqlite+aiosqlite:///{gateway.folder}/var/gateway.db")
    made = []
    async with open_runtime(settings.model_copy(update={"storage_url": gateway.folder.as_uri()})) as runtime:
        for place, amount in enumerate(points):
            user_id = await create_user(runtime.database)
            await ledger.grant(runtime.database, user_id=user_id, points=amount, ref=f"guide:{place}")
            made.append((user_id, sign_token(settings, user_id)))
    return made


def is_javascript(example: Example) -> bool:
    return example.files[0].endswith(".javascript")


def run(gateway: Gateway, example: Example, user_id: int, token: str, task_no: str = "") -> Ran:
    """Runs the example in its own language, on standard input."""
    first, *rest = [(GUIDE / name).read_text("utf-8") for name in example.files]
    source = "\n".join([first, example.prelude, *rest])
    language = example.files[0].rpartition(".")[2]
    if language == "bash":
        command, source = ["bash", "-s"], source.replace("YOUR_JWT_TOKEN", token)
    elif language == "javascript":
        command, source = ["node", "--input-type=module", "-"], f"const YOUR_JWT_TOKEN = '{token}';\n{source}"
    else:
        command, source = [sys.executable, "-"], f"YOUR_JWT_TOKEN = '{token}'\n{source}"
    for old, new in (*example.changes, (GUIDE_TASK, task_no or GUIDE_TASK), (f":{PORT}", f":{gateway.port}")):
        source = source.replace(old, new)
    done = subprocess.run(
        command,
        check=False,
        input=source.encode(),
        capture_output=True,
        cwd=gateway.folder,
        env=own_environment(),
        timeout=240,
    )
    return Ran(user_id, token, (done.stdout + done.stderr).decode(), done.returncode)


def result(ran: dict[str, Ran], name: str) -> Ran:
    if name not in ran:
        pytest.skip("node is missing: the guide's JavaScript was not run")
    return ran[name]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.smoke if name == SMOKE else ()) for name in EXAMPLES]
)
def test_an_example_runs_and_leaves_its_tasks(gateway: Gateway, ran: dict[str, Ran], name: str) -> None:
    example, done = EXAMPLES[name], result(ran, name)
    assert done.exit_code == 0, done.output
    for words in example.says:
        assert words in done.output, done.output
    records = gateway.get("/user/ai/tasks/list?size=100", done.token)["records"]
    assert sorted(record["modelName"] for record in records) == sorted(example.models)
    tasks = [gateway.get(f"/user/ai/tasks/{record['taskNo']}?wait=60", done.token) for record in records]
    spent = 0
    for task in tasks:
        if "[[sandbox" in task["prompt"]:
            assert (task["status"], task["pointsRefunded"]) == ("failed", 30)
            assert task["errorMessage"].endswith("积分已退还")
            continue
        assert (task["status"], task["progress"], task["errorMessage"]) == ("completed", 100, None)
        spent += 30 if task["modelName"].startswith(TEXT) else 35
        check_image(gateway, task)
    balance = gateway.get("/user/points/consumption/balance", done.token)
    assert balance == {"userId": done.user_id, "balance": example.points - spent, "expireTime": None, "held": 0}


def check_image(gateway: Gateway, task: dict[str, Any]) -> None:
    """The picture is at our address, opens, has the ratio of the model, and is safe to show."""
    assert task["resultUrl"].startswith(f"{gateway.origin}/files/results/")
    for url in (*task["resultUrls"], *task["thumbnailUrls"]):
        answer = httpx.get(url, timeout=60)
        assert answer.status_code == 200
        assert answer.headers["x-content-type-options"] == "nosniff"
        with Image.open(io.BytesIO(answer.content)) as image:
            image.load()
            assert answer.headers["content-type"] == Image.MIME[image.format or ""]
            wide, tall = (int(number) for number in task["modelName"].rpartition("_")[2].split("x"))
            assert image.width / image.height == pytest.approx(wide / tall, rel=0.02)
    head, whole = [httpx.request(method, task["resultUrl"], timeout=60) for method in ("HEAD", "GET")]
    assert head.headers["content-length"] == str(len(whole.content))


@pytest.mark.smoke
def test_queries_answer_in_the_guides_shape(gateway: Gateway, ran: dict[str, Ran]) -> None:
    """The examples that only read: one task, three lists, the balance."""
    done = ran["curl 1:1"]
    task_no = json.loads(done.output[: done.output.rindex("}") + 1])["data"]["taskNo"]
    gateway.get(f"/user/ai/tasks/{task_no}?wait=60", done.token)

    def send_request(name: str) -> Any:
        said = run(gateway, Example((f"{name}.bash",)), done.user_id, done.token, task_no)
        assert said.exit_code == 0, said.output
        return json.loads(said.output[said.output.index("{") : said.output.rindex("}") + 1])

    for name in ("task", "balance"):
        shown = json.loads((GUIDE / f"{name}.json").read_text("utf-8"))
        answer = send_request(name)
        assert list(answer) == list(shown) == ["code", "message", "data"]
        assert (answer["code"], answer["message"]) == (200, "success")
        assert set(shown["data"]) <= set(answer["data"])
        for field, value in shown["data"].items():
            assert type(answer["data"][field]) is type(value), field
    task = send_request("task")["data"]
    same = {
        field: task[field] for field in ("modelName", "status", "taskType", "progress", "promptSnippet", "imageUrl")
    }
    assert same == {
        "modelName": "sc_soraimg_text_1x1",
        "status": "completed",
        "taskType": "text_to_image",
        "progress": 100,
        "promptSnippet": "一个可爱的橘猫在窗台上晒太阳...",
        "imageUrl": None,
    }
    assert [send_request(name)["data"]["total"] for name in ("list_text", "list_image", "list_completed")] == [1, 0, 1]


def test_a_large_upload_gets_its_413_over_a_socket(gateway: Gateway, ran: dict[str, Ran]) -> None:
    headers = {"Authorization": f"Bearer {ran['curl 1:1'].token}", "Content-Type": "application/json"}
    body = b'{"prompt": "' + b"x" * 3_000_000 + b'"}'
    for content in (body, iter([body[:1_000_000], body[1_000_000:]])):
        answer = httpx.post(f"{gateway.origin}/user/ai/tasks/submit", content=content, headers=headers, timeout=60)
        assert (answer.status_code, answer.json()["errorCode"]) == (413, "PAYLOAD_TOO_LARGE")


@pytest.mark.smoke
def test_afterwards_the_books_agree_and_the_log_holds_no_secret(gateway: Gateway, ran: dict[str, Ran]) -> None:
    for done in ran.values():
        for record in gateway.get("/user/ai/tasks/list?size=100", done.token)["records"]:
            gateway.get(f"/user/ai/tasks/{record['taskNo']}?wait=60", done.token)
    audit = subprocess.run(
        [GATEWAY, "audit", "--json"],
        check=False,
        cwd=gateway.folder,
        env=own_environment(),
        capture_output=True,
        timeout=120,
    )
    assert json.loads(audit.stdout) == {"ok": True, "violations": []}
    log = gateway.log
    assert "task_submitted" in log
    assert "一个可爱的橘猫在窗台上晒太阳" in log
    assert "request_failed" not in log
    assert "Traceback" not in log
    shown = (gateway.folder / "stdout.log").read_text("utf-8")
    demo_key = next(word for word in shown.split() if word.startswith("sk-"))
    assert [secret for secret in [demo_key, "eyJ", *(done.token for done in ran.values())] if secret in log] == []
