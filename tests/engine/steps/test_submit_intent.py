"""Nothing that takes time stands between the committed intent and the POST: the request is logged before both."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from app.catalog.models import set_model
from app.engine import execute
from app.runtime import Runtime
from tests.support.makers import IMAGE_MODEL, Maker
from tests.support.workers import stepping

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("hurry"), pytest.mark.worlds("embedded")]
MARK = "a prompt to be found again"
REFERENCE = "https://example.com/ref1.jpg"
COMMITTED = "committed"


@pytest.fixture
def story(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What was logged, and each intent to send at the time when it was committed."""
    with capture_logs() as events:
        commit = execute._commit_advance

        async def commit_and_note(runtime: Runtime, task: Any, decision: Any) -> None:
            await commit(runtime, task, decision)
            if decision.step == "submitting" or "asking" in decision.note:
                events.append({"event": COMMITTED, "step": decision.step, "log_level": "info"})

        monkeypatch.setattr(execute, "_commit_advance", commit_and_note)
        yield events


async def test_a_request_is_logged_before_the_intent_is_committed(
    make: Maker, runtime: Runtime, story: list[Any]
) -> None:
    fixed = {"aspectRatio": "1:1", "normalizeReferences": True}
    await set_model(runtime.database, IMAGE_MODEL, {"params": fixed})
    user = await make.user(points=100)
    task_no = await make.task_no(user, MARK, model=IMAGE_MODEL, imageUrl=REFERENCE)
    async with stepping(runtime):
        assert (await make.ended(user, task_no))["status"] == "completed"
    order = [one["event"] for one in story if one["event"] in {"see2ai_submit", COMMITTED, "see2ai_answer"}]
    assert order[:6] == ["see2ai_submit", COMMITTED, "see2ai_answer"] * 2, "the normalization, then the job"
    intents = [index for index, one in enumerate(story) if one["event"] == COMMITTED]
    for begin, holds in zip(intents, (REFERENCE, MARK), strict=True):
        end = next(index for index in range(begin, len(story)) if story[index]["event"] == "see2ai_answer")
        assert [one["event"] for one in story[begin + 1 : end]] == [], "nothing is logged before the answer"
        request = story[begin - 1]
        assert request["task_no"] == task_no
        assert holds in json.dumps(request["payload"])
