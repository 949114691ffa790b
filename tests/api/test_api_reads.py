"""What a caller reads: one task, the list, models and the balance. Also the health of the process."""

import asyncio
import contextlib
import re
import time
import warnings
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from app.accounts.credentials import sign_token
from app.accounts.users import create_user
from app.api.routes import health
from app.catalog.models import disable_model, set_model
from app.points import ledger
from app.runtime import Runtime, open_runtime
from app.settings import Settings
from app.tasks.view import snippet
from tests.support.makers import IMAGE_MODEL, TEXT_MODEL, Maker, User
from tests.support.responses import BALANCE, LIST, MODELS, data, door, refusal
from tests.support.worlds import execute
from worker.main import run_worker

pytestmark = [pytest.mark.anyio, pytest.mark.both_worlds]
embedded = pytest.mark.worlds("embedded")
IMAGE = "https://example.com/ref1.jpg"
LOCAL_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")
FIELDS = {
    *("taskNo", "modelName", "status", "taskType", "progress", "promptSnippet", "imageUrl", "resultUrl"),
    *("createTime", "completeTime", "errorMessage"),  # of the guide
    *("prompt", "params", "resultUrls", "thumbnailUrls", "pointsCost", "pointsRefunded", "errorCode", "updateTime"),
    *("results", "estimatedSecondsLeft", "endUser"),
}


async def listed(make: Maker, user: User, /, **query: Any) -> list[str]:
    """The task numbers of one page, in the order of the answer."""
    answer = await make.api.get(LIST, params=query, headers=user.headers)
    return [record["taskNo"] for record in data(answer)["records"]]


async def created_at(runtime: Runtime, task_no: str, moment: str) -> None:
    """Sets the creation time of a task, in UTC."""
    await execute(runtime, "UPDATE tasks SET created_at = :moment WHERE task_no = :no", moment=moment, no=task_no)


# ------------------------------------------------------------------ one task


async def test_a_new_task_as_its_owner_sees_it(make: Maker) -> None:
    user = await make.user(points=30)
    before = datetime.now(UTC) - timedelta(seconds=2)
    task = await make.task(user, await make.task_no(user))
    assert set(task) == FIELDS
    assert re.fullmatch(r"TASK-\d{17}-\d+", task["taskNo"])
    assert (task["status"], task["progress"], task["taskType"]) == ("created", 0, "text_to_image")
    nothing = [task[name] for name in ("imageUrl", "resultUrl", "completeTime", "errorMessage", "errorCode")]
    assert nothing == [None] * 5
    assert (task["resultUrls"], task["thumbnailUrls"], task["pointsRefunded"]) == ([], [], 0)
    assert LOCAL_TIME.fullmatch(task["createTime"])
    assert LOCAL_TIME.fullmatch(task["updateTime"])
    in_shanghai = datetime.fromisoformat(task["createTime"] + "+08:00")
    assert before <= in_shanghai <= datetime.now(UTC)
    assert task["taskNo"].startswith("TASK-" + in_shanghai.strftime("%Y%m%d%H%M%S"))


async def test_times_are_local_without_an_offset(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=30)
    task_no = await make.task_no(user)
    await created_at(runtime, task_no, "2025-10-26 07:30:45.999000")
    assert (await make.task(user, task_no))["createTime"] == "2025-10-26T15:30:45"
    async with door(runtime, timezone="America/New_York") as api:
        task = data(await api.get(f"/user/ai/tasks/{task_no}", headers=user.headers))
    assert task["createTime"] == "2025-10-26T03:30:45"


@pytest.mark.parametrize(
    ("prompt", "shown"),
    [
        ("猫", "猫"),
        ("一二三四五六七八九十一二三四五六七八九十", "一二三四五六七八九十一二三四五六七八九十"),
        ("一二三四五六七八九十一二三四五六七八九十一", "一二三四五六七八九十一二三四五六七八九十..."),
        ("一个可爱的橘猫在窗台上晒太阳,温馨的室内场景,柔和的光线", "一个可爱的橘猫在窗台上晒太阳..."),
        ("一只猫，两只狗。三只鸟！四只鱼？五只马、六只牛；七只羊", "一只猫，两只狗。三只鸟！四只鱼？五只马..."),
        ("0123456789012345678,x", "0123456789012345678..."),
        ("01234567890123456789,x", "01234567890123456789..."),
        (",23456789012345678901", ",2345678901234567890..."),
        ("a;b!c?" + "x" * 20, "a;b!c..."),
        ("😀" * 21, "😀" * 20 + "..."),
        ("a b. c. d. e. f. g. h. i", "a b. c. d. e. f. g. ..."),
    ],
)
def test_prompt_snippets(prompt: str, shown: str) -> None:
    assert snippet(prompt) == shown


@pytest.mark.usefixtures("hurry")
async def test_waiting_ends_with_the_task(make: Maker, runtime: Runtime, api: httpx.AsyncClient) -> None:
    user = await make.user(points=60)
    task_no = await make.task_no(user)
    path = f"/user/ai/tasks/{task_no}"
    began = time.monotonic()
    still = data(await api.get(path, params={"wait": 1}, headers=user.headers))
    assert 1 <= time.monotonic() - began < 30
    assert still["status"] == "created"
    async with at_work(runtime):
        began = time.monotonic()
        waiting = [api.get(path, params={"wait": 60}, headers=user.headers) for _ in range(10)]
        ended = [data(answer) for answer in await asyncio.gather(*waiting)]
        assert time.monotonic() - began < 50
    assert {(task["status"], task["progress"]) for task in ended} == {("completed", 100)}
    assert all(LOCAL_TIME.fullmatch(task["completeTime"]) for task in ended)
    began = time.monotonic()
    assert data(await api.get(path, params={"wait": 60}, headers=user.headers)) == ended[0]
    assert time.monotonic() - began < 30


@embedded
async def test_waiting_ends_also_if_every_hint_is_lost(
    make: Maker, runtime: Runtime, monkeypatch: pytest.MonkeyPatch, hurry: None
) -> None:
    user = await make.user(points=30)
    task_no = await make.task_no(user)

    monkeypatch.setattr(runtime.pubsub, "publish", lambda *_: None)
    async with at_work(runtime):
        answer = await make.api.get(f"/user/ai/tasks/{task_no}?wait=60", headers=user.headers)
    assert data(answer)["status"] == "completed"


@embedded
async def test_waiting_has_bounds(make: Maker, api: httpx.AsyncClient) -> None:
    user = await make.user()
    for wait, problem in (("61", "不能大于 60"), ("-1", "不能小于 0"), ("x", "须为整数"), ("1.5", "须为整数")):
        answer = await api.get(f"/user/ai/tasks/x?wait={wait}", headers=user.headers)
        assert refusal(answer) == (400, "INVALID_PARAMETER", f"参数错误: wait {problem}")


@contextlib.asynccontextmanager
async def at_work(runtime: Runtime) -> AsyncIterator[None]:
    """A worker for a part of a test."""
    stop = asyncio.Event()
    worker = asyncio.create_task(run_worker(runtime, stop))
    yield
    stop.set()
    await asyncio.wait_for(worker, 120)


# ------------------------------------------------------------------ the list


async def test_pages_have_only_own_tasks_newest_first(make: Maker, api: httpx.AsyncClient) -> None:
    user, other = await make.user(points=25 * 30), await make.user(points=60)
    numbers = [await make.task_no(user, f"猫 {n}") for n in range(25)]
    strangers = {await make.task_no(other, "猫") for _ in range(2)}
    newest = numbers[::-1]
    first = data(await api.get(LIST, headers=user.headers))
    assert {name: first[name] for name in ("total", "page", "size", "pages")} == {
        **{"total": 25, "page": 1, "size": 10, "pages": 3}
    }
    assert set(first["records"][0]) == FIELDS
    pages = [await listed(make, user, page=page, size=10) for page in (1, 2, 3, 4, 1_000_000)]
    assert pages == [newest[:10], newest[10:20], newest[20:], [], []]
    assert await listed(make, user, size=100) == newest
    assert set(await listed(make, other, size=100)) == strangers
    for name in ("userId", "user_id", "user"):
        assert set(await listed(make, other, **{name: user.id}, size=100)) == strangers
    none = data(await api.get(LIST, headers=(await make.user()).headers))
    assert none == {"records": [], "total": 0, "page": 1, "size": 10, "pages": 0}


async def test_tasks_of_the_same_time_keep_their_order_over_pages(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=300)
    numbers = [await make.task_no(user) for _ in range(10)]
    for number in numbers:
        await created_at(runtime, number, "2025-10-26 07:30:45.000000")
    paged = [number for page in range(1, 6) for number in await listed(make, user, page=page, size=2)]
    assert paged == numbers[::-1]


@embedded
async def test_bounds_of_the_list(make: Maker, api: httpx.AsyncClient) -> None:
    user = await make.user()
    bad = {
        "page=0": "page 不能小于 1",
        "page=-1": "page 不能小于 1",
        "page=1000001": "page 不能大于 1000000",
        "page=99999999999999999999": "page 不能大于 1000000",
        f"page={'9' * 5000}": "page 须为整数",
        "page=x": "page 须为整数",
        "page=": "page 须为整数",
        "page=1.5": "page 须为整数",
        "page=%D9%A1": "page 须为整数",
        "size=0": "size 不能小于 1",
        "size=-5": "size 不能小于 1",
        "size=101": "size 不能大于 100",
        "size=%00": "size 须为整数",
        "keyword=%00": "keyword 包含无效字符",
        f"keyword={'x' * 201}": "keyword 不能超过 200 个字符",
        f"modelName={'x' * 101}": "modelName 不能超过 100 个字符",
        "status=done": "status 取值无效，可选: 'created', 'queued', 'processing', 'completed', 'failed'",
        "taskType=text": "taskType 取值无效，可选: 'text_to_image', 'image_to_image', 'text_to_video',"
        " 'image_to_video', 'image_normalize'",
    }
    for query, problem in bad.items():
        answer = await api.get(f"{LIST}?{query}", headers=user.headers)
        assert refusal(answer) == (400, "INVALID_PARAMETER", f"参数错误: {problem}"), query
    for name in ("startTime", "endTime"):
        for moment in ("x", "1761463845", "2025-13-01", "2025-10-26T25:00:00", "0001-01-01T00:00:00", "%00", "9" * 41):
            status, code, message = refusal(await api.get(f"{LIST}?{name}={moment}", headers=user.headers))
            assert (status, code) == (400, "INVALID_PARAMETER")
            assert message.startswith(f"参数错误: {name} "), moment
        answer = await api.get(f"{LIST}?{name}=9999-12-31T23:59:59-12:00", headers=user.headers)
        assert refusal(answer)[0] == 400
    for query in (
        "taskType=&status=&modelName=&keyword=&startTime=&endTime=",
        "nope=1",
        "keyword=%ff",
        "page=1&page=1",
    ):
        assert data(await api.get(f"{LIST}?{query}", headers=user.headers))["total"] == 0, query


async def test_filters(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=1000)
    text = await make.task_no(user)
    wide = await make.task_no(user, model="sc_soraimg_text_3x2")
    image = await make.task_no(user, model=IMAGE_MODEL, imageUrl=IMAGE)
    failed = await make.task_no(user)
    await execute(
        runtime,
        "UPDATE tasks SET status = 'queued' WHERE task_no = :no",
        no=failed,
    )
    assert await listed(make, user, taskType="text_to_image") == [failed, wide, text]
    assert await listed(make, user, taskType="image_to_image") == [image]
    assert await listed(make, user, taskType="text_to_video") == []
    assert await listed(make, user, status="queued") == [failed]
    assert await listed(make, user, status="created") == [image, wide, text]
    assert await listed(make, user, modelName="sc_soraimg_text_3x2") == [wide]
    assert await listed(make, user, modelName="SC_SORAIMG_TEXT_3X2") == []
    assert await listed(make, user, modelName="%") == []
    assert await listed(make, user, taskType="text_to_image", status="created", modelName=TEXT_MODEL) == [text]


async def test_a_keyword_is_no_pattern(make: Maker) -> None:
    user = await make.user(points=10_000)
    prompts = [
        "100% 棉",
        "100 棉",
        "a_b",
        "axb",
        "wow!",
        "wow",
        "c:\\d",
        "c:d",
        "' OR '1'='1",
        "[a-z]",
        "橘猫",
        "!%",
        "!!",
    ]
    numbers = {prompt: await make.task_no(user, prompt) for prompt in prompts}
    found = {
        "%": ["100% 棉", "!%"],
        "_": ["a_b"],
        "!": ["wow!", "!%", "!!"],
        "!%": ["!%"],
        "!!": ["!!"],
        "\\": ["c:\\d"],
        "0% ": ["100% 棉"],
        "'": ["' OR '1'='1"],
        "' OR '1'='1": ["' OR '1'='1"],
        "[a-z]": ["[a-z]"],
        "橘猫": ["橘猫"],
        "棉": ["100% 棉", "100 棉"],
        "%%": [],
        "_%": [],
        "狗": [],
        "*": [],
    }
    for keyword, wanted in found.items():
        assert await listed(make, user, keyword=keyword, size=100) == [numbers[p] for p in wanted][::-1], keyword


async def test_a_keyword_tells_one_emoji_from_another(make: Maker) -> None:
    user = await make.user(points=60)
    smiling, crying = await make.task_no(user, "一只😀猫"), await make.task_no(user, "一只😭猫")
    assert await listed(make, user, keyword="😀") == [smiling]
    assert await listed(make, user, keyword="😭") == [crying]


async def test_times_narrow_the_list_to_their_second(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=1000)
    early, binary_string, late = [await make.task_no(user) for _ in range(3)]
    await created_at(runtime, early, "2025-10-26 07:30:44.999000")
    await created_at(runtime, binary_string, "2025-10-26 07:30:45.999000")
    await created_at(runtime, late, "2025-10-26 07:30:46.000000")
    shown = (await make.task(user, binary_string))["createTime"]
    assert shown == "2025-10-26T15:30:45"
    assert await listed(make, user, startTime=shown, endTime=shown) == [binary_string]
    for moment in (
        "2025-10-26T15:30:45",
        "2025-10-26 15:30:45",
        "2025-10-26T15:30:45+08:00",
        "2025-10-26 15:30:45+08:00",
        "2025-10-26T07:30:45Z",
        "2025-10-26T03:30:45-04:00",
    ):
        assert await listed(make, user, startTime=moment) == [late, binary_string], moment
        assert await listed(make, user, endTime=moment) == [binary_string, early], moment
        careless = await make.api.get(f"{LIST}?startTime={moment}&endTime={moment}", headers=user.headers)
        assert [record["taskNo"] for record in data(careless)["records"]] == [binary_string], moment
    assert await listed(make, user, startTime="2025-10-26", endTime="2025-10-27") == [late, binary_string, early]
    assert await listed(make, user, startTime="2025-10-27") == []
    assert await listed(make, user, startTime="1000-01-01", endTime="9999-12-31T23:59:59") == [
        late,
        binary_string,
        early,
    ]


# ------------------------------------------------------------------ models, points


async def test_models_show_what_a_caller_may_set(make: Maker, runtime: Runtime, api: httpx.AsyncClient) -> None:
    user = await make.user()
    shown = {model["modelName"]: model for model in data(await api.get(MODELS, headers=user.headers))}
    prices = {name: (m["taskType"], m["pointsCost"], m["aspectRatio"]) for name, m in shown.items()}
    assert prices == {
        **{
            f"sc_soraimg_{kind}_{ratio.replace(':', 'x')}": (task_type, cost, ratio)
            for kind, task_type, cost in (("text", "text_to_image", 30), ("img2img", "image_to_image", 35))
            for ratio in ("auto", "1:1", "2:3", "3:2")
        },
        **{
            f"sc_uniworld_text_{ratio.replace(':', 'x')}": ("text_to_image", 80, ratio)
            for ratio in ("1:1", "2:3", "3:2", "16:9", "9:16")
        },
        "sc_video_text_standard": ("text_to_video", 400, None),
        "sc_video_text_fast": ("text_to_video", 320, None),
        "sc_video_img2video_standard": ("image_to_video", 400, None),
        "sc_video_img2video_fast": ("image_to_video", 320, None),
        "sc_image_normalize": ("image_normalize", 1, None),
    }
    assert shown["sc_soraimg_text_3x2"]["description"] == "速创生图 文生图-横图(3:2)"
    settable = {name: set(model["params"]["properties"]) for name, model in shown.items()}
    assert settable["sc_soraimg_text_3x2"] == {"resolution", "outputFormat"}
    assert settable["sc_uniworld_text_1x1"] == {
        *("style", "stylize", "skipDiffusion", "skipHarmonize", "maxReviewRounds", "hierarchical")
    }
    both = {"duration", "resolution", "aspectRatio", "videoUrls", "audioUrls", "watermark", "generateAudio"}
    both |= {"enableWebSearch", "forceAssetUpload"}
    assert settable["sc_video_text_fast"] == both
    assert settable["sc_video_img2video_fast"] == both | {"imageRole", "lastFrameUrl", "faceImageUrl"}
    assert settable["sc_image_normalize"] == {"profile"}
    assert shown["sc_video_text_fast"]["params"]["properties"]["resolution"]["enum"] == ["480p", "720p"]
    for model in shown.values():
        assert set(model) == {
            *("modelName", "description", "taskType", "pointsCost", "priceRules", "aspectRatio", "params")
        }
        assert model["params"]["additionalProperties"] is False
    await disable_model(runtime.database, "sc_soraimg_text_auto")
    await set_model(runtime.database, TEXT_MODEL, {"points_cost": 7})
    after = {model["modelName"]: model for model in data(await api.get(MODELS, headers=user.headers))}
    assert set(shown) - set(after) == {"sc_soraimg_text_auto"}
    assert after[TEXT_MODEL]["pointsCost"] == 7


async def test_the_balance_and_a_users_id_to_the_last_digit(
    make: Maker, runtime: Runtime, api: httpx.AsyncClient
) -> None:
    nobody = await make.user()
    empty = {"userId": nobody.id, "balance": 0, "expireTime": None, "held": 0}
    assert data(await api.get(BALANCE, headers=nobody.headers)) == empty
    imported = 17563793187762127
    await create_user(runtime.database, user_id=imported)
    await ledger.grant(runtime.database, user_id=imported, points=880, ref="import")
    headers = {"Authorization": f"Bearer {sign_token(runtime.settings, imported)}"}
    user = User(imported, headers, {}, "", "")
    await make.task_no(user)
    answer = await api.get(BALANCE, headers=headers)
    assert '"userId":17563793187762127,"balance":850,"expireTime":null' in answer.text
    assert data(answer)["held"] == 30


# ------------------------------------------------------------------ health


async def test_health_needs_no_credential(api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "SEE2AI_SECONDS", 30)  # else a slow machine reports "no answer yet"
    assert data(await api.get("/healthz")) == {"status": "ok"}
    ready = data(await api.get("/readyz"))
    assert set(ready) == {"status", "database", "redis", "see2ai", "circuit"}
    assert set(ready.values()) == {"ok"}


async def test_redis_away_is_a_warning_and_submits_still_answer(tmp_path: Any, make: Maker) -> None:
    settings = make.runtime.settings.model_dump() | {"redis_url": "redis://127.0.0.1:1/0"}
    user = await make.user(points=90)
    async with open_runtime(Settings(_env_file=None, **settings)) as runtime, door(runtime) as api:
        ready = data(await api.get("/readyz"))
        assert (ready["status"], ready["database"]) == ("ok", "ok")
        assert ready["redis"].startswith("warning")
        body, took = {"modelName": TEXT_MODEL, "prompt": "猫"}, []
        for _ in range(3):
            began = time.monotonic()
            submitted = data(await api.post("/user/ai/tasks/submit", json=body, headers=user.headers))
            took.append(time.monotonic() - began)
        assert min(took) < 1
        assert submitted["balance"] == 0
        waited = await api.get(f"/user/ai/tasks/{submitted['taskNo']}?wait=1", headers=user.headers)
        assert data(waited)["status"] == "created"


@pytest.mark.usefixtures("working")
async def test_an_answer_causes_no_warning(make: Maker) -> None:
    """A warning of pydantic on standard error would not be JSON."""
    user = await make.user(points=30)
    task_no = await make.task_no(user)
    await make.ended(user, task_no)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert (await make.task(user, task_no))["results"][0]["width"] > 0
        await listed(make, user)
    assert [str(warning.message) for warning in said if "Pydantic" in str(warning.message)] == []
