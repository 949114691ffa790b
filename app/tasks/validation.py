"""From a caller's words to what SEE2AI will be sent and what it costs: one pure reading, for the quote and the charge.

It raises InvalidParameter for whatever SEE2AI would refuse, and nothing is stored, taken or fetched here.
"""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import structlog

from app.catalog.models import Model
from app.catalog.pricing import compute_price
from app.errors import InvalidParameter, ModelNotFound
from app.files.references import parse_references, validate_link
from app.runtime import Runtime
from app.upstreams.action import ActionInput, CallerParams, build_request, merge_params, urls_in
from app.upstreams.see2ai.actions import Action
from app.webhooks.endpoints import validate_target

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Submission:
    """What a caller asks for. `image_url` is kept as it came: a string, a list, or None.

    `key` is the caller's own name for this very submit: asked twice under it, it is one task. `callback_url` is told
    of the task's end.
    """

    model_name: str
    prompt: str
    image_url: Any = None
    params: dict[str, Any] = field(default_factory=dict)
    key: str | None = None
    callback_url: str | None = None

    def digest(self) -> str:
        """SHA-256 in hex over everything but the key: by it the same body is known again, however it was spaced."""
        body = [self.model_name, self.prompt, self.image_url, self.params]
        if self.callback_url is not None:  # without one, the digest is what it was before there were any
            body.append(self.callback_url)
        text = json.dumps(body, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class PreparedTask:
    """The body for SEE2AI, the price in points, and who is told of the end."""

    action: Action
    request: dict[str, Any]
    points_cost: int
    callback_url: str | None


def prepare_task(runtime: Runtime, asked: Submission, model: Model) -> PreparedTask:
    """Everything that can be wrong with a submission is said here, by the name of the caller's field.

    ModelNotFound where it is the model's row that is wrong: such a row is not offered either.
    """
    try:
        return _prepare_task(runtime, asked, model)
    except InvalidParameter as error:
        if base_price(runtime, model) is None:
            raise ModelNotFound from error
        raise


def _prepare_task(runtime: Runtime, asked: Submission, model: Model) -> PreparedTask:
    action = runtime.actions[model.action]
    references = parse_references(
        asked.image_url,
        max_count=action.max_references,
        allowed=runtime.settings.egress_allowed,
        is_local_url=runtime.store.key_from_url,
    )
    _check_prompt(action, asked.prompt)
    params = merge_params(action, model.task_type, model.fixed, model.defaults, asked.params)
    _check_links(runtime, action, params)
    request = build_request(action, ActionInput(model.task_type, asked.prompt, references, params))
    points_cost = _price(model, params, len(urls_in(request, action.image_url_fields)))
    return PreparedTask(action, request, points_cost, _callback(runtime, asked.callback_url))


def base_price(runtime: Runtime, model: Model) -> int | None:
    """What a task costs where the caller sets nothing; None for a row that this gateway cannot sell.

    Such a row has defaults of another form of SEE2AI's fields, or was written past the gateway's rules.
    """
    action = runtime.actions[model.action]
    try:
        params = merge_params(action, model.task_type, model.fixed, model.defaults, {})
        return _price(model, params, 0 if model.task_type.startswith("text_to_") else 1)
    except InvalidParameter as error:
        log.warning("model_not_sellable", model=model.model_name, error=error.message[:200])
        return None


def _price(model: Model, params: CallerParams, references: int) -> int:
    if not model.rules:
        return model.points_cost
    return compute_price(model.points_cost, model.rules, params.model_dump(by_alias=True), references)


def _callback(runtime: Runtime, url: str | None) -> str | None:
    return validate_target("callbackUrl", url, runtime.settings.egress_allowed) if url else None


def _check_prompt(action: Action, prompt: str) -> None:
    if action.needs_prompt and not prompt.strip():
        raise InvalidParameter("prompt", "不能为空")
    if len(prompt) > action.max_prompt_length:
        raise InvalidParameter("prompt", f"不能超过 {action.max_prompt_length} 个字符")


def _check_links(runtime: Runtime, action: Action, params: CallerParams) -> None:
    if not action.url_params:
        return
    settings = params.model_dump(by_alias=True)
    for name in action.url_params:
        value = settings.get(name)
        named = {f"params.{name}[{place}]": url for place, url in enumerate(value)} if isinstance(value, list) else {}
        for told, url in (named or {f"params.{name}": value}).items():
            if url not in (None, []):
                validate_link(
                    told, url, allowed=runtime.settings.egress_allowed, is_local_url=runtime.store.key_from_url
                )
