"""The guide's code for the log-in of a page and the keys of an integration, unchanged, against the API on a socket."""

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.runtime import Runtime
from tests.support.log_ins import PASSWORD, sign_up
from tests.support.makers import TEXT_MODEL
from tests.support.responses import data, refusal
from tests.support.streams import Door

pytestmark = [pytest.mark.anyio, pytest.mark.worlds("embedded")]
GUIDE = Path(__file__).parents[2] / "docs/guide.zh-CN.md"
GUIDE_ORIGIN = "http://localhost:8081"
BROWSER = """
const server = "SERVER", origin = "ORIGIN", cookies = new Map(), fetchUrl = fetch;
globalThis.fetch = async (path, { headers, ...options }) => {
  const cookie = [...cookies].map(pair => pair.join("=")).join("; ");
  const response = await fetchUrl(server + path, { ...options, headers: { ...headers, cookie, origin } });
  for (const line of response.headers.getSetCookie()) {
    const [name, value] = line.split(";")[0].split("=");
    value ? cookies.set(name, value) : cookies.delete(name);
  }
  return response;
};
"""
"""What a browser does for a page: it completes paths, keeps cookies and sends them with the page's origin."""
PAGE = """
const seen = {};
seen.user = await login("alice", "PASSWORD");
seen.refused = await login("alice", "not-the-password").catch(error => error.message);
accessToken = null; // the page was loaded again
seen.infos = await Promise.all([1, 2, 3].map(() => call("/user/info", { method: "GET" })));
accessToken = "expired";
seen.later = (await call("/user/info", { method: "GET" })).code;
await logout();
seen.ended = (await call("/user/info", { method: "GET" })).code;
console.log(JSON.stringify(seen));
"""


def code_blocks(heading: str, language: str) -> list[str]:
    """The code of this language in one section of the guide."""
    section = GUIDE.read_text("utf-8").partition(f"\n### {heading}\n")[2].partition("\n### ")[0]
    return [block.partition("```")[0] for block in section.split(f"```{language}\n")[1:]]


async def run(*command: str, source: str) -> str:
    """Runs the source, which it gets on standard input. Returns what it printed."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe)
    out, err = await process.communicate(source.encode())
    assert process.returncode == 0, err.decode()
    return out.decode()


async def run_curl(door: Door, source: str, token: str, key_id: int = 0) -> list[dict[str, Any]]:
    """Runs the guide's curl lines as this user. Returns the answers."""
    changes = {GUIDE_ORIGIN: door.origin, "YOUR_JWT_TOKEN": token, "/keys/12": f"/keys/{key_id}"}
    for old, new in changes.items():
        source = source.replace(old, new)
    printed, answers = await run("bash", "-e", source=source), []
    while printed.strip():
        answer, end = json.JSONDecoder().raw_decode(printed)
        answers.append(answer)
        printed = printed[end:].lstrip()
    return answers


async def test_a_page_logs_in_renews_its_token_and_logs_out(runtime: Runtime, door: Door) -> None:
    if shutil.which("node") is None:
        assert not os.environ.get("CI"), "CI needs node"
        pytest.skip("node is missing")
    user = (await sign_up(runtime)).user_id
    (page,) = code_blocks("登录", "javascript")
    browser = BROWSER.replace("SERVER", door.origin).replace("ORIGIN", runtime.settings.own_url.rstrip("/"))
    source = browser + page + PAGE.replace("PASSWORD", PASSWORD)
    seen = json.loads(await run("node", "--input-type=module", "-", source=source))
    assert (seen["user"]["userId"], seen["user"]["username"]) == (user, "alice")
    assert seen["refused"] == "未登录: 用户名或密码错误"
    assert [info["data"]["userId"] for info in seen["infos"]] == [user] * 3
    assert (seen["later"], seen["ended"]) == (200, 401)


async def test_curl_lines_create_change_rotate_and_revoke_a_key(runtime: Runtime, door: Door) -> None:
    token = (await sign_up(runtime)).access_token
    creation, rest = code_blocks("API 密钥", "bash")
    (created,) = await run_curl(door, creation, token)
    key, key_id = created["data"]["apiKey"], created["data"]["id"]
    async with httpx.AsyncClient(base_url=door.origin, timeout=60, trust_env=False) as client:
        body = {"modelName": TEXT_MODEL, "prompt": "猫"}
        elsewhere = await client.post("/user/ai/tasks/submit", json=body, headers={"X-API-Key": key})
        assert refusal(elsewhere)[:2] == (403, "FORBIDDEN"), "this test runs at another address than 203.0.113.0/24"
        listed, changed, rotated, revoked = await run_curl(door, rest, token, key_id)
        assert [one["id"] for one in listed["data"]["records"]] == [key_id]
        assert listed["data"]["records"][0]["caps"] == created["data"]["caps"]
        assert (changed["data"]["caps"]["daily"], changed["data"]["caps"]["maxTasks"]) == (2000, None)
        assert rotated["data"]["apiKey"] not in {None, key}
        assert revoked["code"] == 200
        path = f"/user/keys/{key_id}"
        assert data(await client.get(path, headers={"Authorization": f"Bearer {token}"}))["status"] == "revoked"
