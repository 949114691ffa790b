"""Every answer is the envelope, also for unknown paths and for faults of the gateway."""

import errno
import io
import json
import os
from collections.abc import AsyncIterator

import httpx
import pytest

from app.accounts.credentials import sign_token
from app.api.bodies import MAX_BODY_BYTES
from app.api.routes import points
from app.runtime import Runtime, open_runtime
from app.settings import Settings
from tests.support.makers import TEXT_MODEL, Maker
from tests.support.responses import BALANCE, LIST, MODELS, SUBMIT, data, door, envelope, refusal
from tests.support.worlds import execute

pytestmark = pytest.mark.anyio
embedded = pytest.mark.worlds("embedded")
JSON = {"content-type": "application/json"}
GOOD = json.dumps({"modelName": TEXT_MODEL, "prompt": "猫"})


async def chunks(body: bytes, size: int = 65_536) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


@embedded
async def test_unknown_paths_and_wrong_methods_answer_in_chinese(api: httpx.AsyncClient) -> None:
    for path in ("/", "/nope", "/user", "/user/ai/tasks", f"{LIST}/", f"{MODELS}/", "/user/ai/tasks/a/b", "/%00"):
        assert refusal(await api.get(path)) == (404, "NOT_FOUND", "资源不存在"), path
    for method, path, allowed in (
        ("PATCH", SUBMIT, "POST"),
        ("PUT", LIST, "GET"),
        ("POST", BALANCE, "GET"),
        ("OPTIONS", MODELS, "GET"),
        ("BREW", "/healthz", "GET"),
    ):
        answer = await api.request(method, path)
        assert refusal(answer) == (405, "METHOD_NOT_ALLOWED", "请求方法不支持")
        assert allowed in answer.headers["allow"]


@embedded
async def test_the_openapi_document_has_the_envelope_and_no_422(api: httpx.AsyncClient) -> None:
    document = (await api.get("/openapi.json")).json()
    assert "HTTPValidationError" not in document["components"]["schemas"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert {"400", "401", "402", "404", "429", "503"} <= set(operation["responses"]), (method, path)
            assert "422" not in operation["responses"]
            for status, answer in operation["responses"].items():
                schema = json.dumps(answer.get("content", {}))
                is_file = path.startswith("/files/") or '"text/csv"' in schema
                assert ("Envelope" if status == "200" else "ErrorResponse") in schema or is_file


@embedded
async def test_missing_files(api: httpx.AsyncClient, runtime: Runtime) -> None:
    await runtime.store.put("results/a.jpg", b"a picture", "image/jpeg")
    await runtime.store.put("results/a.svg", b"<svg/>", "image/svg+xml")
    found = await api.get("/files/results/a.jpg")
    assert (found.content, found.headers["content-type"]) == (b"a picture", "image/jpeg")
    assert found.headers["x-content-type-options"] == "nosniff"
    names = [
        "results/b.jpg",
        "results/a.svg",
        "results",
        "",
        "%00.jpg",
        "猫.jpg",
        "a" * 290 + ".jpg",
        "a" * 5000 + ".jpg",
    ]
    escapes = [
        "..%2F..%2Fgateway.db",
        "results/..%2F..%2Fgateway.jpg",
        "%2Fetc%2Fpasswd.jpg",
        "results%2F%2Fa.jpg",
        "./.jpg",
    ]
    for name in names + escapes:
        assert refusal(await api.get(f"/files/{name}"))[:2] == (404, "NOT_FOUND"), name


@embedded
async def test_head_has_the_headers_and_no_body(api: httpx.AsyncClient) -> None:
    for path in (BALANCE, MODELS, "/nope", "/files/results/none.jpg"):
        answer = await api.head(path)
        assert answer.status_code in {404, 405}
        assert answer.content == b""
        assert answer.headers["x-request-id"]
        assert answer.headers["x-content-type-options"] == "nosniff"


@embedded
async def test_too_large_a_body_is_a_413_in_the_envelope(api: httpx.AsyncClient, make: Maker) -> None:
    user = await make.user(points=30)
    padding = " " * (MAX_BODY_BYTES - len(GOOD.encode()))
    largest, larger = (GOOD + padding).encode(), (GOOD + padding + " ").encode()
    expected = (413, "PAYLOAD_TOO_LARGE", "请求内容过大")
    announced = await api.post(SUBMIT, content=larger, headers=JSON | user.headers)
    chunked = await api.post(SUBMIT, content=chunks(larger), headers=JSON | user.headers)
    lying = await api.post(SUBMIT, content=chunks(larger), headers=JSON | user.headers | {"content-length": "9"})
    assert "content-length" not in chunked.request.headers
    assert [refusal(answer) for answer in (announced, chunked, lying)] == [expected] * 3
    for method, path in (("GET", BALANCE), ("POST", "/nope"), ("POST", SUBMIT)):
        assert refusal(await api.request(method, path, content=larger)) == expected
    endless = await api.post(SUBMIT, content=b"", headers=JSON | {"content-length": "9" * 5000})
    assert refusal(endless) == expected
    assert await make.balance(user) == (30, 0)
    assert data(await api.post(SUBMIT, content=largest, headers=JSON | user.headers))["balance"] == 0


@embedded
async def test_only_json_is_accepted(api: httpx.AsyncClient, make: Maker) -> None:
    user = await make.user(points=30)
    called = ["text/plain", "application/x-www-form-urlencoded", "application/xml", "json", "multipart/form-data", ""]
    for content_type in [*(name.encode() for name in called), b"\x80;;;", b"application/json\x01"]:
        headers = [(b"content-type", content_type), (b"authorization", user.headers["Authorization"].encode())]
        answer = await api.post(SUBMIT, content=GOOD, headers=headers)
        assert refusal(answer)[:2] == (415, "UNSUPPORTED_MEDIA"), content_type
        assert "application/json" in answer.json()["message"]
    for files in ({"data": {"a": "b"}}, {"files": {"a": b"b"}}):
        assert refusal(await api.post(SUBMIT, headers=user.headers, **files))[0] == 415
    assert refusal(await api.post(SUBMIT, headers=user.headers))[:2] == (400, "INVALID_PARAMETER")
    assert await make.balance(user) == (30, 0)
    with_charset = {"content-type": "application/json; charset=utf-8"} | user.headers
    assert data(await api.post(SUBMIT, content=GOOD, headers=with_charset))["prompt"] == "猫"


@embedded
async def test_the_request_id_is_the_callers_where_usable(api: httpx.AsyncClient, make: Maker) -> None:
    user = await make.user()
    for path, headers in ((BALANCE, user.headers), (BALANCE, {}), ("/nope", {})):
        answer = await api.get(path, headers=headers | {"X-Request-Id": "order-7.b_C"})
        assert answer.headers.get_list("x-request-id") == ["order-7.b_C"]
        envelope(answer)
    for hostile in (b"a b", b"a\r\nSet-Cookie: x=1", b"a\x00", b"\xff\xfe", b"x" * 65, b"", b"<script>", b"{}"):
        answer = await api.get("/nope", headers=[(b"x-request-id", hostile)])
        own = answer.headers["x-request-id"]
        assert own.encode() != hostile
        assert "set-cookie" not in answer.headers
        assert envelope(answer)["requestId"] == own
    drawn = {(await api.get("/healthz")).headers["x-request-id"] for _ in range(50)}
    assert len(drawn) == 50


async def test_an_internal_error_shows_only_its_request_id(
    log: io.StringIO, make: Maker, runtime: Runtime, api: httpx.AsyncClient
) -> None:
    user = await make.user(points=100)
    await execute(runtime, "ALTER TABLE points_accounts RENAME TO points_accounts_away")
    try:
        for method, path in (("GET", BALANCE), ("POST", SUBMIT)):
            answer = await api.request(
                method, path, headers=user.headers | JSON | {"X-Request-Id": "find-me"}, content=GOOD
            )
            assert refusal(answer) == (500, "INTERNAL", "服务器错误")
            assert not any(word in answer.text + str(answer.headers) for word in ("points_accounts", "SELECT", "sql"))
            assert all(word in log.getvalue() for word in ("request_failed", "points_accounts", "find-me", path))
    finally:
        await execute(runtime, "ALTER TABLE points_accounts_away RENAME TO points_accounts")
    assert await make.balance(user) == (100, 0)


@embedded
@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOSPC])
async def test_a_machine_without_files_or_disk_is_a_503_and_one_line(
    log: io.StringIO, make: Maker, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    user = await make.user()

    async def exhausted(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(points, "get_balance", exhausted)
    answer = await make.api.get(BALANCE, headers=user.headers)
    assert refusal(answer) == (503, "UNAVAILABLE", "服务暂时不可用，请稍后重试")
    assert log.getvalue().count("machine_exhausted") == 1
    assert "Traceback" not in log.getvalue()


@embedded
async def test_browsers_of_another_origin_may_read_every_error(make: Maker, runtime: Runtime) -> None:
    user = await make.user()
    origin = "https://app.example.com"
    async with door(runtime, cors_origins=origin) as api:
        await execute(runtime, "ALTER TABLE points_accounts RENAME TO points_accounts_away")
        try:
            broken = await api.get(BALANCE, headers=user.headers | {"Origin": origin})
        finally:
            await execute(runtime, "ALTER TABLE points_accounts_away RENAME TO points_accounts")
        large = await api.post(SUBMIT, content=b" " * (MAX_BODY_BYTES + 1), headers={"Origin": origin})
        for answer, status in ((broken, 500), (large, 413), (await api.get(BALANCE, headers={"Origin": origin}), 401)):
            assert refusal(answer)[0] == status
            assert answer.headers["access-control-allow-origin"] == origin
        stranger = await api.get(BALANCE, headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in stranger.headers


async def test_a_database_that_is_away_is_a_503(log: io.StringIO, tmp_path: object) -> None:
    settings = Settings(
        _env_file=None,
        database_url="mysql+asyncmy://root:planted-password@127.0.0.1:1/none",
        redis_url="memory://",
        storage_url=f"file://{tmp_path}",
    )
    headers = {"Authorization": f"Bearer {sign_token(settings, 1)}"} | JSON
    async with open_runtime(settings) as runtime, door(runtime) as api:
        for method, path in (("GET", BALANCE), ("GET", LIST), ("GET", MODELS), ("POST", SUBMIT), ("GET", "/readyz")):
            answer = await api.request(method, path, headers=headers, content=GOOD)
            assert refusal(answer) == (503, "UNAVAILABLE", "服务暂时不可用，请稍后重试"), path
            assert 0 < int(answer.headers["retry-after"]) <= 60
        by_key = await api.get(BALANCE, headers={"X-API-Key": "sk-" + "a" * 43})
        assert refusal(by_key)[0] == 503
        assert data(await api.get("/healthz")) == {"status": "ok"}
    assert "database_away" in log.getvalue()
    assert "planted-password" not in log.getvalue()
