"""What runs on the event loop over a text of somebody else takes time in proportion to the text's length.

Each function gets 100,000 characters of each kind: of one class, or of what begins a pattern and never ends it. It may
take no more CPU time than ordinary text of this length, apart from a constant factor. A quadratic one takes seconds.
"""

import io
import json
import re
import time
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from app.api import bodies
from app.api.middleware import _refuse_unread, _requested_id
from app.api.routes import files
from app.api.schemas import SafeJSONResponse
from app.database import like_contains
from app.datetimes import parse_datetime, parse_retry_after
from app.egress.urls import MAX_REQUESTED_URL_LENGTH, parse_url, validate_url
from app.errors import GatewayError, InvalidParameter
from app.files.references import LinkRules, parse_references, stored_image_url
from app.points.redeem_codes import digest_code
from app.sandbox.rules.directives import parse_prompt, visible_text
from app.sandbox.rules.parse import RuleError
from app.settings import Settings
from app.storage import open_object_store
from app.tasks.idempotency import check_key
from app.tasks.stream import read_since
from app.tasks.validation import Submission
from app.tasks.view import snippet
from app.telemetry import logs
from app.upstreams.action import as_urls, merge_params
from app.upstreams.see2ai.account import parse_account
from app.upstreams.see2ai.actions import ACTIONS
from app.upstreams.see2ai.responses import HttpResponse, error_text, read_poll, read_submit
from app.webhooks.signing import Message, sign

LENGTH = 100_000
MAX_FACTOR = 20
MIN_SECONDS = 0.05  # a faster run is not judged: an ordinary text may be refused at its first character
MAX_PROMPT_LENGTH = 20_000
NOBODY: frozenset[str] = frozenset()


def repeat(text: str, length: int = LENGTH) -> str:
    return (text * (length // len(text) + 1))[:length]


ORDINARY = "A cat sits on the mat, 很安静; it looks at the moon. "
CLASSES = ["a", "7", "猫", "😀", "é", "ﷺ", "\ud800", " ", "\t", "\x00"]
SIGNS = ['"', "\\", "/", ".", ", ", ":", "; ", "@", "-", "_", "%", "!", "+"]
BRACKETS = ["[", "[[", "[]", "[1],", "{", "}", '{"a":', "]]", "[[sandbox: ", "[[sandbox:\t", "[[sandbox: {}]]"]
SECRETS = ["eyJ", "-eyJa", "eyJa.", "eyJa.eyJ ", "sk-", "sk-a ", "sk-abcdefgh", "whsec_", "bearer ", "Bearer\t"]
URLS = ["https://", "https://a,", ",https://", "a://", "://a:", "://a:b@", "http://a?", "%41", "a.", "xn--", "../"]
KINDS = {repr(part): repeat(part) for part in [*CLASSES, *SIGNS, *BRACKETS, *SECRETS, *URLS]} | {
    "one number": "1." + "1" * LENGTH,
    "a scheme and blanks": "bearer" + " " * LENGTH,
    "marks in the wrong order": "a" + "\u0301" * (LENGTH // 2) + "\u0323" * (LENGTH // 2),
    "one long URL": "https://example.com/" + "a" * LENGTH,
    "one long host": "https://" + "a" * LENGTH,
    "one JSON text": json.dumps("😀" * (LENGTH // 12)),
    "many JSON keys": json.dumps({str(number): number for number in range(LENGTH // 16)}),
    "nested arrays": "[" * 900 + "]" * 900,
}


def as_bytes(text: str) -> bytes:
    return text.encode(errors="replace")


def latin(text: str) -> str:
    """As a header's value is read."""
    return text.encode("latin-1", "replace").decode("latin-1")


def references(image_url: Any) -> tuple[str, ...]:
    return parse_references(image_url, max_count=14, rules=LinkRules(NOBODY, is_local))


def params(**values: Any) -> Any:
    return merge_params(ACTIONS["see2ai_image_generation_fast_v1"], "text_to_image", {}, {}, values)


def link(prefix: str) -> Callable[[str], object]:
    """Reads the longest URL that is read at all."""
    length = MAX_REQUESTED_URL_LENGTH - len(prefix)
    return lambda text: parse_url(prefix + text[:length], NOBODY, max_length=MAX_REQUESTED_URL_LENGTH)


def answer(status: int, text: str) -> HttpResponse:
    return HttpResponse(status, as_bytes(text))


def poll(text: str) -> object:
    body = json.dumps({"status": text, "result_urls": [text], "error": {"message": text}})
    return read_poll(answer(200, body), "x", lambda found: as_urls(found.get("result_urls")))


SETTINGS = Settings(_env_file=None)
is_local: Callable[[str], object] = lambda _: None  # noqa: E731
FUNCTIONS: dict[str, Callable[[str], object]] = {
    # logs
    "redact_text": logs.redact_text,
    "redact": lambda text: logs.redact(None, "info", {"event": "x", "payload": {"prompt": text, "more": [text]}}),
    "redact bytes and errors": lambda text: logs.redact(None, "", {"a": as_bytes(text), "error": ValueError(text)}),
    "the query of an access log": lambda text: logs._redact_query("/" + text),
    # headers, paths and bodies
    "X-Request-Id": lambda text: _requested_id({"x-request-id": latin(text)}),
    "Content-Length": lambda text: _refuse_unread({"content-length": latin(text)}, 10, None),
    "Content-Encoding": lambda text: _refuse_unread({"content-encoding": latin(text)}, 10, None),
    "charset": lambda text: bodies.codec_for("application/json;" + text),
    "Content-Type": lambda text: bodies._JSON_TYPE.fullmatch("application/" + text),
    "Range": lambda text: files._RANGE.fullmatch("bytes=" + text),
    "path": lambda text: re.sub("/{2,}", "/", text),
    "body": lambda text: bodies.parse_json(as_bytes(text)),
    "a text in a body": lambda text: bodies.parse_json(json.dumps({"a": text, text: [text]}).encode()),
    "GBK": lambda text: bodies.parse_json(text.encode("gb18030", "replace"), "gb18030"),
    "error message": lambda text: SafeJSONResponse({"message": text}),
    # what a submit and a list accept
    "imageUrl": references,
    "imageUrl as an array": lambda text: references(f'["{text}"]'),
    "imageUrl as a broken array": lambda text: references("[" + text),
    "imageUrl as it is stored": lambda text: stored_image_url(text, ("https://a.com/", "https://b.com/")),
    "URL": link(""),
    "host": link("https://"),
    "URL's path": link("https://a.com/"),
    "validate_url": validate_url,
    "storage key": open_object_store(SETTINGS).key_from_url,
    "params": lambda text: params(resolution=text),
    "name in params": lambda text: params(**{text: text}),
    "Idempotency-Key": check_key,
    "digest": lambda text: Submission("m", text, text, {text: text}).digest(),
    "snippet": snippet,
    "keyword": like_contains,
    "since": lambda text: read_since(text, SETTINGS.zone),
    "startTime": lambda text: parse_datetime("startTime", text, SETTINGS.zone),
    "redeem code": digest_code,
    # what others answer
    "Retry-After": lambda text: parse_retry_after(text, 60),
    "answer to a submit": lambda text: read_submit(answer(200, text)),
    "answer to a poll": poll,
    "SEE2AI's error": lambda text: error_text(json.dumps({"detail": [{"msg": text}, text]}).encode()),
    "SEE2AI's broken error": lambda text: error_text(as_bytes(text)),
    "SEE2AI's account": lambda text: parse_account(answer(200, json.dumps({"balance": text, "name": text}))),
    "webhook": lambda text: sign(Message("msg", as_bytes(text)), 1, ["whsec_AAAA"]),
    # the sandbox
    "directives": parse_prompt,
    "visible text": visible_text,
}


def cpu_seconds(function: Callable[[str], object], text: str) -> float:
    started_at = time.thread_time()
    with suppress(GatewayError, RuleError, ValueError):  # it refuses the text
        function(text)
    return time.thread_time() - started_at


def slow_kinds(function: Callable[[str], object], texts: dict[str, str]) -> list[str]:
    ordinary = min(cpu_seconds(function, repeat(ORDINARY)) for _ in range(3))
    limit = max(MAX_FACTOR * ordinary, MIN_SECONDS)
    slow = [kind for kind, text in texts.items() if cpu_seconds(function, text) > limit]
    # Only what is slow each time counts: other processes share this machine's caches.
    return [kind for kind in slow if min(cpu_seconds(function, texts[kind]) for _ in range(3)) > limit]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_time_grows_with_the_length_alone(name: str) -> None:
    assert slow_kinds(FUNCTIONS[name], KINDS) == []


def test_the_measure_finds_a_quadratic_pattern() -> None:
    """The log's patterns once began anew at each letter."""
    pattern = re.compile(r"(\w+://)[^\s/@:]*:[^\s/@]*@")
    assert cpu_seconds(pattern.search, "a" * 8000) > MIN_SECONDS


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_long_prompt_is_logged_in_time_proportional_to_its_length(
    log_format: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(logs, "sys", SimpleNamespace(stderr=stream))
    before = structlog.get_config()
    logs.configure_logs(Settings(_env_file=None, log_format=log_format))
    try:
        log = structlog.get_logger()
        # A body with half a surrogate pair is refused.
        prompts = {kind: text[:MAX_PROMPT_LENGTH] for kind, text in KINDS.items() if "\ud800" not in text}
        assert slow_kinds(lambda text: log.info("x", payload={"prompt": text}), prompts) == []
    finally:
        structlog.configure(**before)
    assert "payload" in stream.getvalue()


def test_secrets_are_still_found() -> None:
    token, key = "eyJhbGciOiJI.eyJzdWIi.c2ln_-", "sk-" + "a1B2" * 11
    hidden = {
        f"Authorization: Bearer {key}": "Authorization: Bearer ***",
        "BEARER  abc": "Bearer ***",
        f"a {token} b": "a *** b",
        f"x-{token},{token}": "x-***,***",
        f"猫{token}": "猫***",
        f"eyJhbGciOiJI.eyJ {token}": "eyJhbGciOiJI.eyJ ***",
        f"{key} 风险{key}": "*** 风险***",
        "whsec_abcdefghij==": "***",
        "https://u:p@h/x?y=1 z": "https://***@h/x?*** z",
        "redis://:secret@h/0": "redis://***@h/0",
        "https://a/b?c=1,https://d/e?f=2 g": "https://a/b?*** g",
    }
    assert {text: logs.redact_text(text) for text in hidden} == hidden
    shown = ["task-1234567890", "https://a.b/c", "https://a.b/c#d?e", "eyJ", "https://", "bearer", "10:30 a@b"]
    assert [logs.redact_text(text) for text in shown] == shown


def test_many_params_are_counted_before_they_are_validated() -> None:
    with pytest.raises(InvalidParameter, match="params 最多 32 项"):
        params(**{f"n{number}": 1 for number in range(50_000)})
