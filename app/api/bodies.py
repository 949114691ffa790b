"""JSON bodies of requests: who may send one, how long it may be, and how it is decoded and parsed.

FastAPI alone reads and parses a body before it asks for the credential. A route of the class `JsonRoute` asks first.
"""

import json
import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from app.api.access import Access
from app.egress import MAX_URL_LENGTH
from app.errors import InvalidParameter, UnsupportedMedia
from app.upstreams.see2ai.actions import ACTIONS

ESCAPED_CHARACTER_BYTES = 12  # an emoji as JSON may spell it: \ud83d\ude00
REST_BYTES = 32_000  # what escaping adds to links, field names, params without links, and blanks
MAX_BODY_BYTES = (
    max(action.max_prompt_length for action in ACTIONS.values()) * ESCAPED_CHARACTER_BYTES
    + (max(action.max_references for action in ACTIONS.values()) + 1) * MAX_URL_LENGTH
    + REST_BYTES
)
"""Of the longest legal submit: the longest prompt with each character escaped, the most links, and a callback."""
MAX_SMALL_BODY_BYTES = 16_384
"""Of every other JSON body. The longest legal one holds one URL, with each character escaped as `\\uXXXX`."""
MAX_DEPTH = 32  # of arrays and objects in one another; a submit needs three

BODY = "请求体"
_JSON_TYPE = re.compile(r"application/([a-z0-9!#$&^_.+-]+\+)?json", re.IGNORECASE)
_CHARSET = re.compile(r";\s*charset\s*=\s*\"?([^\s;\"]*)", re.IGNORECASE)
_UNICODE = ("utf-8", "utf8", "us-ascii", "ascii", "utf-16", "utf-16le", "utf-16be", "utf-32")
_CHINESE = ("gbk", "gb2312", "gb18030", "cp936")
_CODECS = dict.fromkeys(_UNICODE) | dict.fromkeys(_CHINESE, "gb18030")
"""By the charset's name in lower case. None: the bytes show which Unicode encoding it is. GB18030 includes GBK."""


class JsonRoute(APIRoute):
    """A route whose body is read only after its `Access` has let the caller in, and is JSON in a known charset."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle
        (access,) = [one.call for one in self.dependant.dependencies if isinstance(one.call, Access)]

        async def handle_body(request: Request) -> Response:
            await access(request)
            content_type = request.headers.get("content-type", "")
            codec = codec_for(content_type)
            try:
                body = await request.body()
            except ClientDisconnect:  # nobody receives the response
                raise InvalidParameter(BODY, "传输中断") from None
            if body and _JSON_TYPE.fullmatch(content_type.partition(";")[0].strip()) is None:
                raise UnsupportedMedia("请求体须为 JSON，请设置 Content-Type: application/json")
            parsed = parse_json(body, codec) if body else None
            return await handle(_ParsedRequest(request.scope, request.receive, body, parsed))

        return handle_body


class _ParsedRequest(Request):
    """A request whose body is parsed already."""

    def __init__(self, scope: Scope, receive: Receive, body: bytes, parsed: Any) -> None:
        super().__init__(scope, receive)
        self._bytes, self._parsed = body, parsed

    async def body(self) -> bytes:
        return self._bytes

    async def json(self) -> Any:
        return self._parsed


def codec_for(content_type: str) -> str | None:
    """Python's codec for the charset that a Content-Type declares; None for Unicode and where it declares none.

    Raises UnsupportedMedia for any other charset. The name is not looked up in Python, which knows codecs that are no
    charsets, and remembers each unknown name for ever.
    """
    match = _CHARSET.search(content_type)
    name = (match[1].lower() if match is not None else "") or "utf-8"
    if name not in _CODECS:
        raise UnsupportedMedia(f"不支持的字符集 {name[:40]}，请使用 UTF-8")
    return _CODECS[name]


def parse_json(body: bytes, codec: str | None = None) -> Any:
    """The value in a JSON text. Raises InvalidParameter."""
    try:
        text = body.decode(codec or json.detect_encoding(body))
    except UnicodeDecodeError:
        raise InvalidParameter(BODY, f"不是有效的 JSON，编码须为 {(codec or 'utf-8').upper()}") from None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidParameter(BODY, "不是有效的 JSON") from None
    if text.count("[") + text.count("{") > MAX_DEPTH and _is_deeper(value, MAX_DEPTH):
        raise InvalidParameter(BODY, f"嵌套过深，最多 {MAX_DEPTH} 层")
    return value


def _is_deeper(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth):
        containers = [one for one in level if isinstance(one, dict | list)]
        level = [item for one in containers for item in (one.values() if isinstance(one, dict) else one)]
    return any(isinstance(one, dict | list) for one in level)
