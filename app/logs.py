"""Structured logs without secrets: what is set up once a process, and the filter every line passes.

They hold the whole submit payload and the start of SEE2AI's answers. They never hold a credential, a
ticket or a signed query string.
"""

import logging
import re
import sys
from typing import Any

import structlog
from structlog.typing import EventDict, WrappedLogger

from app.settings import Settings

SECRET_NAMES = frozenset(
    {"authorization", "x-api-key", "token", "apikey", "api_key", "secret", "password", "ticket", "jwt"}
)
HIDDEN = "***"
_KEY = re.compile(r"\b(?:sk|whsec)[-_][A-Za-z0-9_\-+/=]{8,}")
_JWT = re.compile(r"\beyJ[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")
_BEARER = re.compile(r"(?i)\bbearer\s+\S+")
_QUERY = re.compile(r"(https?://[^\s\"'<>?#]+)\?[^\s\"'<>\\]*")
_USERINFO = re.compile(r"(\w+://)[^\s/@:]*:[^\s/@]*@")


def set_up_logs(settings: Settings) -> None:
    """Console or JSON lines on standard error; the libraries' own logs join them at WARNING."""
    renderer: Any = structlog.processors.JSONRenderer(ensure_ascii=False)
    if settings.log_format == "console":
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    before: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        hide_secrets,
    ]
    level = logging.getLevelNamesMapping()[settings.log_level]
    structlog.configure(
        processors=[*before, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processor=renderer, foreign_pre_chain=before))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    for name in ("uvicorn.access", "uvicorn.error"):
        logging.getLogger(name).addFilter(_WITHOUT_QUERIES)


class _WithoutQueries(logging.Filter):
    """Uvicorn logs paths with their queries, and in a query a ticket may stand. Records keep the form it knows."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(_without_query(arg) for arg in record.args)
        return True


def _without_query(arg: object) -> object:
    is_path = isinstance(arg, str) and arg.startswith("/") and "?" in arg
    return f"{str(arg).partition('?')[0]}?{HIDDEN}" if is_path else arg


_WITHOUT_QUERIES = _WithoutQueries()


def hide_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """The structlog processor: walks the whole event, also inside payloads."""
    return {key: _hidden(key, value) for key, value in event.items()}


def _hidden(name: str, value: Any) -> Any:
    if name.lower() in SECRET_NAMES:
        return HIDDEN
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, dict):
        return {key: _hidden(str(key), inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_hidden("", inner) for inner in value]
    if isinstance(value, bytes):
        return without_secrets(value.decode(errors="replace"))
    if isinstance(value, BaseException):
        return without_secrets(repr(value))
    return value


def without_secrets(text: str) -> str:
    """`text` with keys, tokens, passwords in URLs and query strings replaced."""
    text = _QUERY.sub(r"\1?" + HIDDEN, text)
    text = _USERINFO.sub(r"\1" + HIDDEN + "@", text)
    text = _BEARER.sub("Bearer " + HIDDEN, text)
    text = _JWT.sub(HIDDEN, text)
    return _KEY.sub(HIDDEN, text)
