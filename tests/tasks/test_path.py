"""One task from submit to end, in both worlds."""

import re

import pytest

from tests.support.makers import Maker

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("working")]


async def test_a_task_ends_with_a_stored_image_and_its_price_is_spent(make: Maker) -> None:
    user = await make.user(points=100)
    answer = await make.submit(user, "一个可爱的橘猫在窗台上晒太阳,温馨的室内场景,柔和的光线")
    data = answer.json()["data"]
    assert (data["status"], data["balance"], data["pointsCost"]) == ("created", 70, 30)
    task = await make.ended(user, data["taskNo"])
    assert (task["status"], task["progress"], task["errorMessage"]) == ("completed", 100, None)
    assert task["promptSnippet"] == "一个可爱的橘猫在窗台上晒太阳..."
    assert re.search(r"/results/\d{4}/\d\d/", task["resultUrl"])  # in UTC, unlike `createTime`
    assert "127.0.0.1" not in task["resultUrl"] or make.runtime.settings.storage_endpoint in task["resultUrl"]
    assert await make.balance(user) == (70, 0)


async def test_a_failed_task_is_refunded_with_a_chinese_reason(make: Maker) -> None:
    user = await make.user(points=30)
    task_no = await make.task_no(user, '不要 [[sandbox: {"end": "failed", "text": "bad words"}]]')
    assert await make.balance(user) == (0, 30)
    task = await make.ended(user, task_no)
    assert (task["status"], task["errorCode"], task["pointsRefunded"]) == ("failed", "UPSTREAM_FAILED", 30)
    assert "积分已退还" in task["errorMessage"]
    assert "bad words" not in task["errorMessage"]
    assert await make.balance(user) == (30, 0)
