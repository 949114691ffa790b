"""Bodies: nobody's is read before the credential, each is bounded, and a charset is understood or refused."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from app.api.bodies import MAX_BODY_BYTES, MAX_DEPTH, MAX_SMALL_BODY_BYTES
from app.main import create_app
from app.runtime import Runtime
from tests.support.makers import IMAGE_MODEL, TEXT_MODEL, Maker
from tests.support.responses import SUBMIT, data, refusal

pytestmark = [pytest.mark.anyio, pytest.mark.worlds("embedded")]
QUOTE = "/user/ai/tasks/quote"
UPLOAD = "/user/files/upload"
JSON = {"content-type": "application/json"}
HOOK = "https://receiver.example.com/hook"
STRANGERS = [{}, {"Authorization": "Bearer eyJ.eyJ.x"}, {"X-API-Key": "sk-" + "a" * 43}]


def link(number: int, length: int = 2048) -> str:
    start = f"https://example.com/{number}/"
    return start + "a" * (length - len(start))


LONG_SUBMIT = {
    "modelName": IMAGE_MODEL,
    "prompt": "😀" * 20_000,
    "imageUrl": [link(number) for number in range(14)],
    "params": {"resolution": "2K", "outputFormat": "png"},
    "callbackUrl": link(99),
}


GUEST_PATHS = {f"/user/auth/{name}" for name in ("register", "login", "refresh", "logout")}
"""Whoever calls them has no credential. They are counted for the client's address before their bodies are read."""


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


# ------------------------------------------------------------------ who may send one


async def test_nobody_s_body_is_read_before_the_credential(runtime: Runtime, api: httpx.AsyncClient) -> None:
    """On each route that takes a body, and on routes to come."""
    read: list[str] = []

    async def body(path: str) -> AsyncIterator[bytes]:
        read.append(path)
        yield b"{}"

    document = create_app(runtime.settings, runtime).openapi()
    routes = [
        (method, path.replace("{endpoint_id}", "1"), next(iter(operation["requestBody"]["content"])))
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if "requestBody" in operation
    ]
    routes = [one for one in routes if one[1] not in GUEST_PATHS]
    assert {path for _, path, _ in routes} >= {SUBMIT, QUOTE, UPLOAD, "/user/points/redeem", "/admin/points/grants"}
    for method, path, content_type in routes:
        for stranger in STRANGERS:
            headers = {"content-type": content_type} | stranger
            answer = await api.request(method, path, content=body(path), headers=headers)
            assert refusal(answer)[:2] == (401, "UNAUTHENTICATED"), path
    assert read == []


async def test_neither_is_one_without_the_right_or_beyond_the_rate(
    make: Maker, runtime: Runtime, endless_minute: None
) -> None:
    user = await make.user()
    broken = {"content": b"{", "headers": user.headers | JSON}
    assert refusal(await make.api.post("/admin/points/grants", **broken))[0] == 403
    statuses = [(await make.api.post("/user/points/redeem", **broken)).status_code for _ in range(12)]
    assert statuses == [400] * 10 + [429] * 2, "a request counts once, although the credential is looked at first"


# ------------------------------------------------------------------ how long it may be


async def test_the_longest_legal_body_is_taken_and_a_longer_one_is_not(make: Maker) -> None:
    user = await make.user(points=70)
    longest = json.dumps(LONG_SUBMIT).encode()
    assert 12 * 20_000 < len(longest) < MAX_BODY_BYTES < 310_000
    for content in (longest, longest.ljust(MAX_BODY_BYTES)):
        task = data(await make.api.post(SUBMIT, content=content, headers=JSON | user.headers))
        assert (task["prompt"], task["imageUrl"]) == (LONG_SUBMIT["prompt"], LONG_SUBMIT["imageUrl"])
    for path in (SUBMIT, QUOTE):
        answer = await make.api.post(path, content=longest.ljust(MAX_BODY_BYTES + 1), headers=JSON | user.headers)
        assert refusal(answer)[:2] == (413, "PAYLOAD_TOO_LARGE")
    assert await make.balance(user) == (0, 70)


async def test_other_routes_take_less(make: Maker) -> None:
    user = await make.user(admin=True)
    url = "https://receiver.example.com/" + "é" * 300
    longest = json.dumps({"url": url}).encode().ljust(MAX_SMALL_BODY_BYTES)
    headers = JSON | user.headers
    assert data(await make.api.post("/user/webhooks/endpoints", content=longest, headers=headers))["enabled"]
    for path in ("/user/webhooks/endpoints", "/user/points/redeem", "/admin/points/grants", "/user/webhooks/test"):
        assert refusal(await make.api.post(path, content=longest + b" ", headers=headers))[0] == 413, path


async def test_thousands_of_params_are_counted_and_not_judged(make: Maker) -> None:
    user = await make.user(points=30)
    for count in (33, 20_000):
        params = {f"n{number}": 1 for number in range(count)}
        answer = await make.submit(user, params=params)
        assert refusal(answer) == (400, "INVALID_PARAMETER", "参数错误: params 最多 32 项")
    assert "params.n0 不支持" in refusal(await make.submit(user, params={"n0": 1}))[2]


async def test_arrays_and_objects_in_one_another_are_bounded(make: Maker) -> None:
    user = await make.user(points=90)
    for depth, status in ((3, 200), (MAX_DEPTH - 1, 200), (MAX_DEPTH, 400), (500, 400)):
        answer = await make.submit(user, metadata=nested(depth))
        assert answer.status_code == status, depth
    assert refusal(answer)[2] == f"参数错误: 请求体 嵌套过深，最多 {MAX_DEPTH} 层"
    assert (await make.submit(user, "[" * 1000 + "{" * 1000)).status_code == 200, "a prompt may hold brackets"
    assert await make.balance(user) == (0, 90)


# ------------------------------------------------------------------ in which form


@pytest.mark.parametrize(
    ("charset", "codec"),
    [
        *((name, "gbk") for name in ("GBK", "gb2312", "gb18030", '"gbk"', "cp936")),
        *((name, "utf-8") for name in ("UTF-8", "utf8", '"utf-8"', "")),
        *(("utf-16", "utf-16"), ("UTF-16LE", "utf-16-le"), ("us-ascii", "ascii")),
    ],
)
async def test_a_declared_charset_is_decoded(make: Maker, charset: str, codec: str) -> None:
    user = await make.user(points=30)
    prompt = "cat" if codec == "ascii" else "一只可爱的柴犬"
    content = json.dumps({"modelName": TEXT_MODEL, "prompt": prompt}, ensure_ascii=False).encode(codec)
    headers = {"content-type": f"application/json; charset={charset}"} | user.headers
    assert data(await make.api.post(SUBMIT, content=content, headers=headers))["prompt"] == prompt


async def test_another_charset_or_other_bytes_are_refused_by_name(make: Maker) -> None:
    user = await make.user(points=30)
    body = json.dumps({"modelName": TEXT_MODEL, "prompt": "一只可爱的柴犬"}, ensure_ascii=False)
    for charset in ("big5", "iso-8859-1", "latin1", "hex", "zlib", "idna", "unicode_escape", "utf-7", "x" * 5000):
        headers = {"content-type": f"application/json; charset={charset}"} | user.headers
        code, name, message = refusal(await make.api.post(SUBMIT, content=body.encode(), headers=headers))
        assert (code, name) == (415, "UNSUPPORTED_MEDIA"), charset
        assert charset[:40] in message
        assert "UTF-8" in message
    for content, charset, named in ((body.encode("gbk"), "", "UTF-8"), (b'{"prompt": "\xff\xff"}', "gbk", "GB18030")):
        headers = {"content-type": f"application/json; charset={charset}"} | user.headers
        code, _, message = refusal(await make.api.post(SUBMIT, content=content, headers=headers))
        assert (code, named in message) == (400, True), message
    assert await make.balance(user) == (30, 0)


async def test_a_compressed_body_is_refused_by_name(make: Maker) -> None:
    user = await make.user(points=30)
    for path, content_type in ((SUBMIT, "application/json"), (UPLOAD, "multipart/form-data; boundary=b")):
        for encoding in ("gzip", "br", "GZIP, identity"):
            headers = {"content-type": content_type, "content-encoding": encoding} | user.headers
            code, _, message = refusal(await make.api.post(path, content=b"\x1f\x8b\x08", headers=headers))
            assert (code, encoding in message) == (415, True)
    plain = JSON | user.headers | {"content-encoding": "identity"}
    body = {"modelName": TEXT_MODEL, "prompt": "猫"}
    assert data(await make.api.post(SUBMIT, content=json.dumps(body), headers=plain))["prompt"] == "猫"


async def test_repeated_slashes_of_a_path_are_one(make: Maker) -> None:
    user = await make.user(points=30)
    root = "http://gateway.test//"
    body = {"modelName": TEXT_MODEL, "prompt": "猫"}
    task = data(await make.api.post(f"{root}user///ai/tasks//submit", json=body, headers=user.headers))
    assert data(await make.api.get(f"{root}user/ai//tasks/{task['taskNo']}", headers=user.headers))["prompt"] == "猫"
    assert refusal(await make.api.get(f"{root}nope"))[0] == 404
    large = b" " * (MAX_SMALL_BODY_BYTES + 1)
    assert refusal(await make.api.post(f"{root}user//points/redeem", content=large))[0] == 413


async def test_monitors_may_ask_for_the_head(api: httpx.AsyncClient) -> None:
    for path in ("/healthz", "/readyz"):
        answer = await api.head(path)
        assert (answer.status_code, answer.content) == (200, b"")


async def test_the_document_says_which_integers_are_long(runtime: Runtime) -> None:
    document = create_app(runtime.settings, runtime).openapi()
    schemas = document["components"]["schemas"]
    assert schemas["BalanceResponse"]["properties"]["userId"]["format"] == "int64"
    assert schemas["GrantBody"]["properties"]["userId"]["format"] == "int64"
    assert schemas["RecordResponse"]["properties"]["balanceAfter"]["format"] == "int64"
    integers = list(integers_in(document))
    assert len(integers) > 30
    for schema in integers:
        is_short = schema.get("maximum", 2**63) < 2**31 and schema.get("minimum", -(2**63)) > -(2**31)
        assert is_short or schema["format"] == "int64", schema


def integers_in(value: Any) -> Any:
    if isinstance(value, dict):
        if value.get("type") == "integer":
            yield value
        value = list(value.values())
    for item in value if isinstance(value, list) else ():
        yield from integers_in(item)
