"""A second provider, as a separate package would define it: an action, a client, and one line for the registry."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.settings import Settings
from app.upstreams.action import Action, ActionInput, CallerParams
from app.upstreams.protocol import Provider, ResultKind, UpstreamResult

NAME = "other"


class OtherParams(CallerParams):
    """The parameters of the action: there is one."""

    steps: int = 4


def _build(action_input: ActionInput) -> dict[str, Any]:
    return {
        "words": action_input.prompt,
        "images": list(action_input.references),
        **action_input.params.model_dump(),
    }


PAINT = Action(
    name="other_paint_v1",
    provider=NAME,
    params={"text_to_image": OtherParams, "image_to_image": OtherParams},
    submit_path="/paint",
    status_path="/paint/{task_id}",
    build=_build,
    read_urls=lambda body: tuple(body["images"]),
    media="image",
    typical_seconds=1,
    max_references=1,
    max_prompt_length=100,
    image_url_fields=("images",),
)


class OtherClient:
    """Answers from memory: accepted, running once, then done with `result_url`. It records its requests."""

    def __init__(self) -> None:
        self.result_url = ""
        self.submitted: list[dict[str, Any]] = []
        self.polled: list[str] = []
        self.uploaded: list[str] = []
        self.is_closed = False

    async def submit(self, action: Action, request: dict[str, Any], *, may_send: Callable[[], bool]) -> UpstreamResult:
        assert action is PAINT
        if not may_send():
            return UpstreamResult(ResultKind.NOT_SENT)
        self.submitted.append(request)
        return UpstreamResult(ResultKind.ACCEPTED, task_id=f"other-{len(self.submitted)}")

    async def poll(self, action: Action, task_id: str) -> UpstreamResult:
        assert action is PAINT
        self.polled.append(task_id)
        if self.polled.count(task_id) == 1:
            return UpstreamResult(ResultKind.RUNNING, progress=40)
        return UpstreamResult(ResultKind.SUCCEEDED, urls=(self.result_url,))

    async def upload(self, path: Path) -> UpstreamResult:
        self.uploaded.append(path.name)
        return UpstreamResult(ResultKind.SUCCEEDED, urls=(f"https://other.example.com/{path.name}",))

    async def close(self) -> None:
        self.is_closed = True


def provider_of(client: OtherClient) -> Provider:
    def open_client(_settings: Settings) -> OtherClient:
        return client

    return Provider(NAME, open_client, lambda _settings: (PAINT,), (PAINT,))
