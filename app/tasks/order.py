"""From a caller's words to what SEE2AI will be sent and what it costs: one pure reading, for the quote and the charge.

It raises InvalidParameter for whatever SEE2AI would refuse, and nothing is stored, taken or fetched here.
"""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import structlog

from app.errors import InvalidParameter, ModelNotFound
from app.points.models import Model
from app.points.prices import compute_price
from app.runtime import Runtime
from app.see2ai.actions import Action
from app.see2ai.actions.action import CallerParams, Order, build_request, fold_params, links_of
from app.tasks.references import check_link, read_references
from app.webhooks.endpoints import read_target

log = structlog.get_logger()

WRONG = (InvalidParameter, LookupError, TypeError, ValueError, AttributeError)  # but for the first, of a row


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
class Offer:
    """The body for SEE2AI, the price in points, and who is told of the end."""

    action: Action
    request: dict[str, Any]
    points_cost: int
    callback_url: str | None


def make_offer(runtime: Runtime, asked: Submission, model: Model) -> Offer:
    """Everything that can be wrong with a submission is said here, by the name of the caller's field.

    ModelNotFound where it is the model's row that is wrong: such a row is not offered either.
    """
    try:
        return _make_offer(runtime, asked, model)
    except WRONG as error:
        if starting_price(runtime, model) is None:
            raise ModelNotFound from error
        raise


def _make_offer(runtime: Runtime, asked: Submission, model: Model) -> Offer:
    action = runtime.actions[model.action]
    references = read_references(
        asked.image_url,
        most=action.most_references,
        allowed=runtime.settings.egress_allowed,
        owns=runtime.store.key_of,
    )
    _check_prompt(action, asked.prompt)
    params = fold_params(action, model.task_type, model.fixed, model.defaults, asked.params)
    _check_links(runtime, action, params)
    request = build_request(action, Order(model.task_type, asked.prompt, references, params))
    points_cost = _price(model, params, len(links_of(request, action.picture_fields)))
    return Offer(action, request, points_cost, _callback(runtime, asked.callback_url))


def starting_price(runtime: Runtime, model: Model) -> int | None:
    """What a task costs where the caller sets nothing; None for a row that this gateway cannot sell.

    Such a row has defaults of another form of SEE2AI's fields, or was written past the gateway's rules.
    """
    action = runtime.actions[model.action]
    try:
        params = fold_params(action, model.task_type, model.fixed, model.defaults, {})
        return _price(model, params, 0 if model.task_type.startswith("text_to_") else 1)
    except WRONG as error:
        log.warning("model_unsellable", model=model.model_name, error=repr(error)[:200])
        return None


def _price(model: Model, params: CallerParams, references: int) -> int:
    if not model.price_rules:
        return model.points_cost
    return compute_price(model.points_cost, model.price_rules, params.model_dump(by_alias=True), references)


def _callback(runtime: Runtime, url: str | None) -> str | None:
    return read_target("callbackUrl", url, runtime.settings.egress_allowed) if url else None


def _check_prompt(action: Action, prompt: str) -> None:
    if action.needs_prompt and not prompt.strip():
        raise InvalidParameter("prompt", "不能为空")
    if len(prompt) > action.longest_prompt:
        raise InvalidParameter("prompt", f"不能超过 {action.longest_prompt} 个字符")


def _check_links(runtime: Runtime, action: Action, params: CallerParams) -> None:
    if not action.url_params:
        return
    settings = params.model_dump(by_alias=True)
    for name in action.url_params:
        value = settings.get(name)
        named = {f"params.{name}[{place}]": url for place, url in enumerate(value)} if isinstance(value, list) else {}
        for told, url in (named or {f"params.{name}": value}).items():
            if url not in (None, []):
                check_link(told, url, allowed=runtime.settings.egress_allowed, owns=runtime.store.key_of)
