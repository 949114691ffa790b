"""Configures structured logs, and redacts secrets in every line.

The logs contain whole submit payloads and the start of SEE2AI's responses. They never contain a credential, a ticket
or a signed query string.
"""

import logging
import re
import sys
from contextlib import suppress
from typing import Any

import structlog
from structlog.typing import EventDict, WrappedLogger

from app.settings import Settings

SECRET_NAMES = frozenset(
    {"authorization", "x-api-key", "token", "apikey", "api_key", "secret", "password", "ticket", "jwt"}
)
REDACTED = "***"
# A caller may write a text against these patterns, so each of them takes time in proportion to the text's length: it
# begins with a fixed text, which is found quickly, and reads no run of characters more than twice. Where such a run may
# contain the beginning again (`eyJ`, `https://`), the pattern matches the run in any case, and a function decides.
_KEYS = [
    re.compile(r"sk[-_](?<![A-Za-z0-9_]sk.)[A-Za-z0-9_\-+/=]{8,}+"),
    re.compile(r"whsec[-_](?<![A-Za-z0-9_]whsec.)[A-Za-z0-9_\-+/=]{8,}+"),
]
_JWT = re.compile(r"eyJ(?<![A-Za-z0-9_]eyJ)[A-Za-z0-9_-]*+(\.[A-Za-z0-9_-]++\.[A-Za-z0-9_-]*+)?")
_BEARER = re.compile(r"(?i)bearer(?<![A-Za-z0-9_]bearer)\s++\S++")
_URL = re.compile(r"(https?://[^\s\"'<>?#]++)(\?[^\s\"'<>\\]*+)?")
_USERINFO = re.compile(r"://[^\s/@:]*+:[^\s/@]*+@")


def configure_logs(settings: Settings) -> None:
    """Writes console or JSON lines to standard error. Libraries log to the same place from WARNING on."""
    renderer: Any = structlog.processors.JSONRenderer(ensure_ascii=False)
    if settings.log_format == "console":
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    shared_processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        redact,
    ]
    level = logging.getLevelNamesMapping()[settings.log_level]
    structlog.configure(
        processors=[*shared_processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: structlog.PrintLogger(_STDERR),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processor=renderer, foreign_pre_chain=shared_processors))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    for name in ("uvicorn.access", "uvicorn.error"):
        logging.getLogger(name).addFilter(_SERVER_LINES)
    # It describes each broken form in several lines. `upload_refused` is one.
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)


class _Stderr:
    """Standard error. A line that cannot be written is lost: a full disk or a closed pipe must not stop the work."""

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.flush()


_STDERR: Any = _Stderr()  # one object: structlog keeps a lock for each


class _ServerLines(logging.Filter):
    """Redacts the query of each path that Uvicorn logs, because a query may contain a ticket.

    Drops what Uvicorn says about a caller's mistake: the gateway says it in a line of its own.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if record.msg == "Invalid UTF-8 sequence received from client.":
            return False
        if isinstance(record.args, tuple):
            record.args = tuple(_redact_query(arg) for arg in record.args)
        return True


def _redact_query(arg: object) -> object:
    is_path = isinstance(arg, str) and arg.startswith("/") and "?" in arg
    return f"{str(arg).partition('?')[0]}?{REDACTED}" if is_path else arg


_SERVER_LINES = _ServerLines()


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """The structlog processor that redacts the whole event, nested payloads included."""
    return {name: _redact_value(name, value) for name, value in event.items()}


def _redact_value(name: str, value: Any) -> Any:
    if name.lower() in SECRET_NAMES:
        return REDACTED
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, dict):
        return {name: _redact_value(str(name), item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_redact_value("", item) for item in value]
    if isinstance(value, bytes):
        return redact_text(value.decode(errors="replace"))
    if isinstance(value, BaseException):
        return redact_text(repr(value))
    return value


def redact_text(text: str) -> str:
    """`text` in which keys, tokens, passwords in URLs and query strings are replaced."""
    text = _URL.sub(_redact_url, text)
    text = _USERINFO.sub(f"://{REDACTED}@", text)
    text = _BEARER.sub(f"Bearer {REDACTED}", text)
    text = _JWT.sub(_redact_jwt, text)
    for pattern in _KEYS:
        text = pattern.sub(REDACTED, text)
    return text


def _redact_url(url: re.Match[str]) -> str:
    return url[0] if url[2] is None else f"{url[1]}?{REDACTED}"


def _redact_jwt(token: re.Match[str]) -> str:
    return token[0] if token[1] is None else REDACTED
