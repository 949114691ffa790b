"""Validates a submission and prices it, for a quote and for a submit. Nothing is stored, deducted or fetched here.

It raises InvalidParameter for whatever the upstream would reject.
"""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import structlog

from app.catalog.models import Model
from app.catalog.pricing import compute_price
from app.errors import InvalidParameter, ModelNotFound
from app.files.references import LinkRules, parse_references, read_link, stored_image_url
from app.files.upload_records import is_recorded
from app.storage import ObjectStore
from app.upstreams.action import IMAGE_URL, ActionInput, CallerParams, build_request, merge_params, urls_in
from app.upstreams.see2ai.actions import Action
from app.webhooks.endpoints import validate_target

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Submission:
    """What a caller submits. `image_url` is kept as it came: a string, a list, or None.

    `key` is the idempotency key. `callback_url` receives a webhook when the task ends. `end_user` is how an integration
    names its own customer.
    """

    model_name: str
    prompt: str
    image_url: Any = None
    params: dict[str, Any] = field(default_factory=dict)
    key: str | None = None
    callback_url: str | None = None
    end_user: str | None = None

    def digest(self) -> str:
        """SHA-256 in hex of everything but the key. The same body with other blanks has the same digest."""
        body = [self.model_name, self.prompt, self.image_url, self.params]
        if self.callback_url is not None:  # without one, the digest is that of versions before callbacks
            body.append(self.callback_url)
        if self.end_user is not None:
            body.append({"endUser": self.end_user})
        text = json.dumps(body, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class PreparedTask:
    """A valid submission: the request for the upstream, `imageUrl` as it is stored, the price, and the callback URL."""

    action: Action
    request: dict[str, Any]
    image_url: str | list[str] | None
    points_cost: int
    callback_url: str | None


def prepare_task(action: Action, submission: Submission, model: Model, links: LinkRules) -> PreparedTask:
    """Raises InvalidParameter with the caller's field; ModelNotFound where the model itself cannot be sold."""
    try:
        return _prepare_task(action, submission, model, links)
    except InvalidParameter as error:
        if base_price(action, model) is None:
            raise ModelNotFound from error
        raise


def _prepare_task(action: Action, submission: Submission, model: Model, links: LinkRules) -> PreparedTask:
    references = parse_references(submission.image_url, max_count=action.max_references, rules=links)
    _check_prompt(action, submission.prompt)
    params = merge_params(action, model.task_type, model.fixed, model.defaults, submission.params)
    params = _escape_links(action, params, links)
    request = build_request(action, ActionInput(model.task_type, submission.prompt, references, params))
    points_cost = _price(model, params, len(urls_in(request, action.image_url_fields)))
    image_url = stored_image_url(submission.image_url, references)
    return PreparedTask(action, request, image_url, points_cost, _callback(submission.callback_url, links.allowed))


def base_price(action: Action, model: Model) -> int | None:
    """The price of a task without params of the caller; None for a model that this gateway cannot sell.

    Such a model has defaults of another form of SEE2AI's fields, or was written without the gateway's checks.
    """
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


def _callback(url: str | None, allowed: frozenset[str]) -> str | None:
    return validate_target("callbackUrl", url, allowed) if url else None


def _check_prompt(action: Action, prompt: str) -> None:
    if action.needs_prompt and not prompt.strip():
        raise InvalidParameter("prompt", "不能为空")
    if len(prompt) > action.max_prompt_length:
        raise InvalidParameter("prompt", f"不能超过 {action.max_prompt_length} 个字符")


def _escape_links(action: Action, params: CallerParams, links: LinkRules) -> CallerParams:
    """The params with their links as SEE2AI gets them. Raises InvalidParameter."""
    changes: dict[str, Any] = {}
    for name, info in type(params).model_fields.items():
        value, label = getattr(params, name), f"params.{info.alias}"
        if info.alias not in action.url_params or value in (None, []):
            continue
        if isinstance(value, list):
            changes[name] = [read_link(f"{label}[{index}]", url, links) for index, url in enumerate(value)]
        else:
            changes[name] = read_link(label, value, links)
    return params.model_copy(update=changes) if changes else params


def find_uploads(store: ObjectStore, submission: Submission, action: Action, request: dict[str, Any]) -> dict[str, str]:
    """The recorded uploads among the links of a request: the caller's field by key."""
    params = {url: f"params.{name}" for name in action.url_params for url in urls_in(submission.params, (name,))}
    urls = urls_in(request, (*action.image_url_fields, *action.av_url_fields))
    keys = {url: store.key_from_url(url) for url in urls}
    return {key: params.get(url, IMAGE_URL) for url, key in keys.items() if key is not None and is_recorded(key)}


def require_uploads(fields: dict[str, str], missing: set[str]) -> None:
    """Raises InvalidParameter that names the caller's field of the first missing upload."""
    for key, field_name in fields.items():
        if key in missing:
            raise InvalidParameter(field_name, "上传的文件已过期或不存在，请重新上传")
