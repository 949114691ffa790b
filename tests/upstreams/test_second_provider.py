"""A second provider is one package and one line in `PROVIDERS`. Its tasks need no other change."""

import io
from datetime import timedelta

import httpx
import pytest
from PIL import Image

from app.catalog.models import set_model
from app.runtime import Runtime, open_runtime
from app.settings import Settings
from app.upstreams import registry
from app.upstreams.breaker_state import BreakerState
from app.upstreams.see2ai.client import UPLOAD_PATH
from tests.support.makers import Maker
from tests.support.other_upstream import NAME, PAINT, OtherClient, provider_of
from tests.support.sandbox_server import KEY, Server
from tests.support.task_rows import ended
from tests.support.workers import stepping

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("hurry")]
MODEL = "other_painting"


@pytest.fixture(autouse=True)
def other(monkeypatch: pytest.MonkeyPatch) -> OtherClient:
    """Adds the line before a runtime is opened."""
    client = OtherClient()
    monkeypatch.setattr(registry, "PROVIDERS", (*registry.PROVIDERS, provider_of(client)))
    return client


@pytest.fixture
async def model(runtime: Runtime, other: OtherClient, upstream: Server) -> None:
    """A model of the second provider's action. The egress of the tests may fetch its result."""
    image = io.BytesIO()
    Image.new("RGB", (48, 32), "navy").save(image, "PNG")
    files, headers = {"file": ("result.png", image.getvalue())}, {"Authorization": f"Bearer {KEY}"}
    answer = httpx.post(upstream.origin + UPLOAD_PATH, files=files, headers=headers)
    other.result_url = answer.json()["url"]
    row = {"description": "", "action": PAINT.name, "params": {"steps": 9}, "points_cost": 12}
    for task_type in PAINT.params:
        await set_model(runtime.database, f"{MODEL}_{task_type}", row | {"task_type": task_type})
    upstream.client.delete("/journal")


async def test_a_task_of_the_second_provider_runs_to_its_end(
    make: Maker, runtime: Runtime, upstream: Server, other: OtherClient, model: None
) -> None:
    user = await make.user(points=12)
    task_no = await make.task_no(user, "一只猫", model=f"{MODEL}_text_to_image")
    async with stepping(runtime):
        one = await ended(make, user, task_no)
    assert one.outcome == "completed", one.row
    assert other.submitted == [{"words": "一只猫", "images": [], "steps": 9}]
    assert other.polled == ["other-1", "other-1"]
    (result,) = one.row["results"]
    assert (result["type"], result["width"], result["height"]) == ("image/png", 48, 32)
    assert await runtime.store.open(result["key"]) is not None
    assert runtime.store.key_from_url(one.task["resultUrl"]) == result["key"]
    assert one.row["upstream_task_id"] == "other-1"
    assert [entry["method"] for entry in upstream.journal()] == ["GET"], "SEE2AI's sandbox only served the file"
    assert await make.balance(user) == (0, 0)


@pytest.mark.settings(see2ai_uploads="always")
async def test_a_stored_reference_is_uploaded_to_the_provider_of_the_task(
    make: Maker, runtime: Runtime, upstream: Server, other: OtherClient, model: None
) -> None:
    name = "0123456789abcdef0123456789abcdef.png"
    image = io.BytesIO()
    Image.new("RGB", (32, 12), "navy").save(image, "PNG")
    await runtime.store.put(f"uploads/2026/01/{name}", image.getvalue(), "image/png")
    url = runtime.store.public_url(f"uploads/2026/01/{name}")
    user = await make.user(points=12)
    task_no = await make.task_no(user, "一只猫", model=f"{MODEL}_image_to_image", imageUrl=url)
    async with stepping(runtime):
        assert (await ended(make, user, task_no)).outcome == "completed"
    assert other.uploaded == [name]
    assert [request["images"] for request in other.submitted] == [[f"https://other.example.com/{name}"]]
    assert [entry["method"] for entry in upstream.journal()] == ["GET"]


async def test_each_provider_has_its_own_breaker(
    make: Maker, runtime: Runtime, other: OtherClient, model: None
) -> None:
    breaker = runtime.breakers["see2ai"]
    until = breaker.now() + timedelta(seconds=1000)
    breaker.state = BreakerState(billable_open=True, reason="HTTP 401", opened_at=breaker.now(), open_until=until)
    user = await make.user(points=42)
    waiting = await make.task_no(user, "waits for SEE2AI")
    async with stepping(runtime):
        task_no = await make.task_no(user, "一只猫", model=f"{MODEL}_text_to_image")
        assert (await make.ended(user, task_no))["status"] == "completed"
    assert not runtime.breakers[NAME].is_open
    assert (await make.task(user, waiting))["status"] == "queued"


async def test_a_runtime_opens_and_closes_the_client_of_each_provider(settings: Settings, other: OtherClient) -> None:
    async with open_runtime(settings) as opened:
        assert set(opened.upstreams) == {"see2ai", NAME}
        assert opened.upstreams[NAME] is other
        assert opened.actions[PAINT.name] is PAINT
        assert not other.is_closed
    assert other.is_closed
