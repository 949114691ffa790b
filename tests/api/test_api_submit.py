"""Submit: a refused one costs nothing and names its field; an accepted one costs exactly its price, once."""

import asyncio
import json
import re
from typing import Any

import httpx
import pytest

from app.catalog.models import disable_model, set_model
from app.points.audit.checks import audit
from app.points.balance import get_balance
from app.runtime import Runtime, open_runtime
from tests.support.makers import IMAGE_MODEL, TEXT_MODEL, Maker, User
from tests.support.responses import SUBMIT, data, door, refusal
from tests.support.worlds import execute
from worker.main import run_worker

pytestmark = [pytest.mark.anyio, pytest.mark.both_worlds]
embedded = pytest.mark.worlds("embedded")
JSON = {"content-type": "application/json"}
IMAGE = "https://example.com/ref1.jpg"
EMOJI = "😀"


def text_body(**fields: Any) -> dict[str, Any]:
    return {"modelName": TEXT_MODEL, "prompt": "猫"} | fields


def image_body(image_url: Any) -> dict[str, Any]:
    return {"modelName": IMAGE_MODEL, "prompt": "猫", "imageUrl": image_url}


async def refused_without_effect(make: Maker, user: User, bodies: dict[str, Any], message: str) -> None:
    """Each body is a 400 with `message`. Afterwards nothing is stored or deducted.

    A body is a JSON value or bytes. `{…}` in the message stands for any text.
    """
    before = await standing(make, user)
    pattern = re.escape(message).replace(r"\{…\}", ".*")
    for name, body in bodies.items():
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = await make.api.post(SUBMIT, content=content, headers=JSON | user.headers)
        assert answer.status_code == 400, (name, answer.text)
        status, code, said = refusal(answer)
        assert (status, code) == (400, "MODEL_NOT_FOUND" if "模型" in said[:4] else "INVALID_PARAMETER")
        assert re.fullmatch(pattern, said), (name, said)
    assert await standing(make, user) == before


async def standing(make: Maker, user: User) -> tuple[Any, int]:
    listed = await make.api.get("/user/ai/tasks/list", headers=user.headers)
    return await make.balance(user), data(listed)["total"]


# ------------------------------------------------------------------ what is refused


@embedded
async def test_prompts_that_are_refused(make: Maker) -> None:
    user = await make.user(points=100)
    blank = {"empty": "", "blanks": "  ", "ideographic blanks": "\u3000\n\t", "no-break": "\xa0"}
    await refused_without_effect(
        make, user, {name: text_body(prompt=p) for name, p in blank.items()}, "参数错误: prompt 不能为空"
    )
    await refused_without_effect(make, user, {"missing": {"modelName": TEXT_MODEL}}, "参数错误: prompt 不能为空")
    wrong = {repr(p): text_body(prompt=p) for p in (None, 5, 1.5, True, ["猫"], {"a": "猫"}, [])}
    await refused_without_effect(make, user, wrong, "参数错误: prompt 须为字符串")
    long = {"letters": text_body(prompt="x" * 20_001), "emoji": text_body(prompt=EMOJI * 20_001)}
    await refused_without_effect(make, user, long, "参数错误: prompt 不能超过 20000 个字符")
    invalid = {
        "NUL": text_body(prompt="a\0b"),
        "surrogate": text_body(prompt="a\ud800b"),
        "low": text_body(prompt="\udfff"),
    }
    await refused_without_effect(make, user, invalid, "参数错误: prompt 包含无效字符")


async def test_unknown_models(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=100)
    await disable_model(runtime.database, "sc_soraimg_text_2x3")
    names = [
        "nope",
        "SC_SORAIMG_TEXT_1X1",
        " sc_soraimg_text_1x1",
        "sc_soraimg_text_1x1\0",
        "ｓc_soraimg_text_1x1",
        "sc_soraimg_text_2x3",
        "猫",
        "%",
        "' OR 1=1 -- ",
    ]
    await refused_without_effect(make, user, {name: text_body(modelName=name) for name in names}, "模型不存在或已停用")


@pytest.mark.parametrize(
    ("column", "text", "event"),
    [
        *((column, '{"a":', "model_invalid") for column in ("params", "defaults", "price_rules")),
        *((column, "5", "model_invalid") for column in ("params", "defaults", "price_rules")),
        ("params", "[]", "model_invalid"),
        ("params", '{"aspectRatio":"7:5"}', "model_not_sellable"),
        ("price_rules", "[5]", "model_invalid"),
    ],
)
async def test_an_invalid_row_is_no_model_and_the_others_still_work(
    make: Maker, runtime: Runtime, capsys: pytest.CaptureFixture[str], column: str, text: str, event: str
) -> None:
    user = await make.user(points=100)
    broken = {"text": text, "name": "sc_soraimg_text_2x3"}
    await execute(runtime, f"UPDATE points_config SET {column} = :text WHERE model_name = :name", **broken)
    body = {"broken": text_body(modelName=broken["name"])}
    capsys.readouterr()
    await refused_without_effect(make, user, body, "模型不存在或已停用")
    payload = capsys.readouterr()
    assert (event in payload.err + payload.out, broken["name"] in payload.err + payload.out) == (True, True)
    quoted = await make.api.post("/user/ai/tasks/quote", json=body["broken"], headers=user.headers)
    assert refusal(quoted)[:2] == (400, "MODEL_NOT_FOUND")
    listed = {one["modelName"] for one in data(await make.api.get("/user/ai/models", headers=user.headers))}
    assert (broken["name"] in listed, len(listed)) == (False, 17)
    payload = capsys.readouterr()
    assert event in payload.err + payload.out
    assert (await make.submit(user)).status_code == 200
    assert data(await make.api.get("/readyz"))["database"] == "ok"


async def test_a_trailing_blank_makes_another_name(make: Maker) -> None:
    user = await make.user(points=100)
    await refused_without_effect(make, user, {"blank": text_body(modelName=f"{TEXT_MODEL} ")}, "模型不存在或已停用")


@embedded
async def test_invalid_model_names(make: Maker) -> None:
    user = await make.user(points=100)
    for name, problem in (
        (None, "须为字符串"),
        (5, "须为字符串"),
        ("", "不能为空"),
        ("x" * 101, "不能超过 100 个字符"),
    ):
        body = {repr(name): text_body(modelName=name)}
        await refused_without_effect(make, user, body, f"参数错误: modelName {problem}")
    await refused_without_effect(make, user, {"missing": {"prompt": "猫"}}, "参数错误: modelName 不能为空")
    await refused_without_effect(
        make, user, {"surrogate": text_body(modelName="\ud800")}, "参数错误: modelName 包含无效字符"
    )


@embedded
async def test_references_in_a_wrong_form(make: Maker) -> None:
    user = await make.user(points=100)
    kinds: dict[str, list[Any]] = {
        "imageUrl 不能为空": [None, "", [], "[]", " [ ] "],
        "imageUrl 须为链接或链接数组": [5, True, 1.5, {"url": IMAGE}, {}],
        "imageUrl 不是有效的 JSON 数组": [
            "[",
            '["' + IMAGE + '"',
            '["a",]',
            "[" * 100_000,
            f'["{IMAGE}"] x',
            "[NaN",
            "['a']",
        ],
        "imageUrl[0] 须为链接": [[1], [None], [""], [True], [[IMAGE]], [{"url": IMAGE}]],
        "imageUrl{…} 须为链接": ["[1]", "[null]", '[""]', f'[["{IMAGE}"]]', "[NaN]"],
        "imageUrl[1] 须为链接": [[IMAGE, ""], [IMAGE, [IMAGE]], f'["{IMAGE}", 7]'],
        "imageUrl 最多 14 张参考图": [[IMAGE] * 15, json.dumps([IMAGE] * 15), [1] * 50_000],
        "imageUrl{…} 必须是 http 或 https 地址": [
            "null",
            f'"{IMAGE}"',
            "ftp://a.com/x",
            "//a.com/x",
            ["file:///x"],
            "javascript:x",
            "data:image/png;base64,AA",
            "example.com/x.jpg",
        ],
        "imageUrl{…} 含有空格或非法字符": [
            "https://a.com/\0",
            "https://a.com/\ud800",
            ["https://a.com/\ud800"],
            '["https://a.com/\\ud800"]',
            "https://a.com/\r\nx",
        ],
        "imageUrl{…} 不能包含用户名或密码": [
            "http://u:p@a.com/x",
            "https://example.com@127.0.0.1/",
            ["http://@a.com/"],
        ],
        "imageUrl{…} 不能超过 2048 个字符": [IMAGE + "x" * 2048],
    }
    for problem, forms in kinds.items():
        bodies = {repr(form)[:60]: image_body(form) for form in forms}
        await refused_without_effect(make, user, bodies, f"参数错误: {problem}")
    await refused_without_effect(
        make, user, {"missing": image_body(None) | {"imageUrl": None}}, "参数错误: imageUrl 不能为空"
    )
    unasked = {repr(form): text_body(imageUrl=form) for form in (IMAGE, [IMAGE], f'["{IMAGE}"]')}
    await refused_without_effect(make, user, unasked, "参数错误: imageUrl 不适用于该模型")


@embedded
async def test_references_to_private_addresses(make: Maker) -> None:
    user = await make.user(points=100)
    hosts = [
        *("127.0.0.1", "localhost", "LOCALHOST.", "a.localhost", "10.0.0.8", "192.168.1.1", "172.16.0.1", "0.0.0.0"),
        *("169.254.169.254", "100.64.0.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "127.1", "127.0.0.1."),
        *("１２７.0.0.1", "127。0。0。1", "①②⑦.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "[::]", "[fe80::1]", "[fd00::1]"),
        *("[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[fec0::1]", "[ff02::1]", "224.0.0.1", "255.255.255.255"),
        *("127.0.0.1:80", "[::1]:443"),
    ]
    bodies = {host: image_body(f"http://{host}/x.jpg") for host in hosts}
    bodies["in a list"] = image_body([IMAGE, "http://127.0.0.1/"])
    bodies["in a string"] = image_body('["https://10.0.0.1/x.jpg"]')
    await refused_without_effect(make, user, bodies, "参数错误: imageUrl{…} 不能指向内网地址")
    ports = {port: image_body(f"http://example.com:{port}/") for port in ("22", "3306", "8080", "0", "65535")}
    await refused_without_effect(make, user, ports, "参数错误: imageUrl 端口只能是 80 或 443")


@embedded
async def test_params_that_are_refused(make: Maker) -> None:
    user = await make.user(points=100)
    kinds: dict[str, list[Any]] = {
        "params 须为 JSON 对象": [[], "x", 5, True, "{}"],
        "params.aspectRatio 由模型固定，不能修改": [
            {"aspectRatio": "16:9"},
            {"aspectRatio": "1:1"},
            {"aspectRatio": None},
        ],
        "params.aspect_ratio 不支持{…}": [{"aspect_ratio": "16:9"}],
        "params.nope 不支持{…}": [{"nope": 1}, {"nope": None}],
        "params. 不支持{…}": [{"": 1}],
        "params.resolution 取值无效{…}1K{…}2K{…}": [{"resolution": v} for v in ("3K", "2k", 2, None, True, ["2K"], {})],
        "params.outputFormat 取值无效{…}png{…}": [{"outputFormat": "svg"}],
        "params{…}": [{"\ud800": 1}, {"resolution": "\ud800"}, {"{}": 1}, {"{field.__class__}": 1}],
    }
    for problem, forms in kinds.items():
        bodies = {repr(form): text_body(params=form) for form in forms}
        await refused_without_effect(make, user, bodies, f"参数错误: {problem}")


@embedded
async def test_bodies_that_are_no_object(make: Maker) -> None:
    user = await make.user(points=100)
    good = json.dumps(text_body(), ensure_ascii=False)
    whole = {
        "array": [],
        "list of one": [text_body()],
        "null": None,
        "string": "x",
        "number": 1,
        "true": True,
        "NaN": b"NaN",
    }
    await refused_without_effect(make, user, whole, "参数错误: 请求体 须为 JSON 对象")
    await refused_without_effect(make, user, {"none": b""}, "参数错误: 请求体 不能为空")
    broken = {
        "cut": b'{"modelName": "x"',
        "comma": b'{"prompt": "x",}',
        "comment": b"{} // x",
        "two": b"{}{}",
        "single quotes": b"{'prompt': 'x'}",
        "control": b'{"prompt": "a\x00b"}',
        "blank": b"   ",
        "deep": b"[" * 100_000,
        "deep and closed": b"[" * 100_000 + b"]" * 100_000,
        "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        "deep inside": good.encode()[:-1] + b',"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "giant int": good.encode()[:-1] + b',"x":' + b"9" * 5_000 + b"}",
    }
    await refused_without_effect(make, user, broken, "参数错误: 请求体 不是有效的 JSON")
    undecodable = {
        "latin-1": '{"prompt": "é"}'.encode("latin-1"),
        "half a character": good.encode()[:-3],
        "random": bytes(range(128, 256)),
    }
    await refused_without_effect(make, user, undecodable, "参数错误: 请求体 不是有效的 JSON，编码须为 UTF-8")
    nan = {"prompt": b'{"modelName": "%s", "prompt": NaN}' % TEXT_MODEL.encode()}
    await refused_without_effect(make, user, nan, "参数错误: prompt 须为字符串")


# ------------------------------------------------------------------ what is accepted


async def test_unusual_submits_that_are_valid(make: Maker) -> None:
    user = await make.user(points=10_000)
    good = json.dumps(text_body(), ensure_ascii=False)
    contents = {
        "BOM": b"\xef\xbb\xbf" + good.encode(),
        "UTF-16": good.encode("utf-16"),
        "UTF-32": good.encode("utf-32-be"),
        "escaped": json.dumps(text_body()).encode(),
        "duplicate keys: the last one": b'{"modelName":"nope",' + good.encode()[1:],
        "unknown fields": json.dumps(text_body(x={"y": [None]}, points=1, user_id=5, status="completed")).encode(),
        "unknown NaN": good.encode()[:-1] + b',"x":NaN,"y":-Infinity,"z":1e999}',
        "null params": json.dumps(text_body(params=None, imageUrl=None)).encode(),
        "no references": json.dumps(text_body(imageUrl="")).encode(),
    }
    for name, content in contents.items():
        answer = await make.api.post(SUBMIT, content=content, headers=JSON | user.headers)
        assert answer.status_code == 200, (name, answer.text)
        stored = data(answer)
        assert (stored["prompt"], stored["status"], stored["pointsCost"]) == ("猫", "created", 30), name
        assert (stored["imageUrl"], stored["params"], stored["progress"]) == (None, {}, 0), name
    assert await make.balance(user) == (10_000 - 30 * len(contents), 30 * len(contents))


@pytest.mark.parametrize("character", ["猫", EMOJI, "\u0301", "\\", "'", "\x07"])
async def test_twenty_thousand_characters_are_kept_to_the_last(make: Maker, character: str) -> None:
    user = await make.user(points=30)
    prompt = character * 19_999 + "。"
    task = await make.task(user, await make.task_no(user, prompt))
    assert task["prompt"] == prompt
    assert task["promptSnippet"] == character * 20 + "..."


async def test_references_are_echoed_as_they_came(make: Maker) -> None:
    user = await make.user(points=1000)
    fourteen = [f"https://example.com/{n}.jpg?a=1&b=%20" for n in range(14)]
    for form in (
        IMAGE,
        "HTTP://EXAMPLE.COM:80/a b".replace(" ", "%20"),
        json.dumps(fourteen),
        fourteen,
        f' ["{IMAGE}"]',
        "https://例え.jp/写真.jpg",
        "https://oss-1818ai-user-img.oss-cn-hangzhou.aliyuncs.com/user123/photo.jpg",
    ):
        task_no = data(await make.api.post(SUBMIT, json=image_body(form), headers=user.headers))["taskNo"]
        task = await make.task(user, task_no)
        assert task["imageUrl"] == form
        assert task["pointsCost"] == 35


async def test_the_answer_is_the_task_with_the_balance_after_it(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=100)
    submitted = data(await make.submit(user, params={"resolution": "2K", "outputFormat": "png"}))
    balance = submitted.pop("balance")
    assert balance == 70
    assert submitted == await make.task(user, submitted["taskNo"])
    assert submitted["params"] == {"resolution": "2K", "outputFormat": "png"}
    assert await make.balance(user) == (70, 30)
    async with open_runtime(runtime.settings) as another_process:
        seen = await get_balance(another_process.database, user.id)
    assert (seen.available, seen.held) == (70, 30)


# ------------------------------------------------------------------ money and rates


async def test_too_few_points_are_reported_with_both_numbers(make: Maker) -> None:
    poor, nobody = await make.user(points=10), await make.user()
    assert refusal(await make.submit(poor)) == (402, "INSUFFICIENT_POINTS", "积分不足，当前余额 10，本次需要 30")
    image = await make.submit(poor, model=IMAGE_MODEL, imageUrl=IMAGE)
    assert refusal(image)[2] == "积分不足，当前余额 10，本次需要 35"
    assert refusal(await make.submit(nobody))[2] == "积分不足，当前余额 0，本次需要 30"
    assert await standing(make, poor) == ((10, 0), 0)
    binary_string = await make.user(points=30)
    assert data(await make.submit(binary_string))["balance"] == 0


async def test_a_hundred_at_once_on_points_for_ten(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=305)
    answers = await asyncio.gather(*(make.submit(user, f"猫 {n}") for n in range(100)))
    accepted = [data(answer) for answer in answers if answer.status_code == 200]
    refused = [refusal(answer) for answer in answers if answer.status_code != 200]
    assert len(accepted) == 10
    assert refused == [(402, "INSUFFICIENT_POINTS", "积分不足，当前余额 5，本次需要 30")] * 90
    assert sorted(task["balance"] for task in accepted) == list(range(5, 305, 30))
    assert len({task["taskNo"] for task in accepted}) == 10
    assert await standing(make, user) == ((5, 300), 10)
    assert await audit(runtime.database) == []


@pytest.mark.usefixtures("hurry")
async def test_the_price_is_the_one_of_the_submit(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=100)
    good, bad = await make.task_no(user), await make.task_no(user, '[[sandbox: {"end": "failed"}]]')
    await set_model(runtime.database, TEXT_MODEL, {"points_cost": 41})
    assert refusal(await make.submit(user))[2] == "积分不足，当前余额 40，本次需要 41"
    await set_model(runtime.database, TEXT_MODEL, {"enabled": False})
    assert refusal(await make.submit(user))[1] == "MODEL_NOT_FOUND"
    stop = asyncio.Event()
    worker = asyncio.create_task(run_worker(runtime, stop))
    done, failed = await make.ended(user, good), await make.ended(user, bad)
    stop.set()
    await worker
    assert (done["status"], done["pointsCost"], done["pointsRefunded"]) == ("completed", 30, 0)
    assert (failed["status"], failed["pointsCost"], failed["pointsRefunded"]) == ("failed", 30, 30)
    assert await make.balance(user) == (70, 0)


async def test_too_many_submits_are_a_429_with_retry_after(make: Maker, runtime: Runtime, endless_minute: None) -> None:
    user, other = await make.user(points=1000), await make.user(points=1000)
    async with door(runtime, submit_rate_per_minute=3, read_rate_per_minute=5) as api:
        statuses = [(await api.post(SUBMIT, json=text_body(), headers=user.headers)) for _ in range(6)]
        assert [answer.status_code for answer in statuses] == [200] * 3 + [429] * 3
        assert refusal(statuses[-1]) == (429, "RATE_LIMITED", "请求过于频繁，请稍后再试")
        assert 0 < int(statuses[-1].headers["retry-after"]) <= 60
        by_key = await api.post(SUBMIT, json=text_body(), headers=user.key_headers)
        assert by_key.status_code == 429
        assert (await api.post(SUBMIT, json=text_body(), headers=other.headers)).status_code == 200
        reads = [(await api.get("/user/points/consumption/balance", headers=user.headers)) for _ in range(7)]
        assert [answer.status_code for answer in reads] == [200] * 5 + [429] * 2
    assert await standing(make, user) == ((910, 90), 3)


@embedded
async def test_authentication_is_checked_before_the_body(make: Maker, api: httpx.AsyncClient) -> None:
    answer = await api.post(SUBMIT, json={"modelName": 5})
    assert refusal(answer) == (401, "UNAUTHENTICATED", "未登录或Token过期")
