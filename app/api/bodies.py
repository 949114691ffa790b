"""JSON bodies of requests: how long one may be, and how it is read, decoded and parsed."""

import json
import re
from typing import Any, Final

from fastapi import Request
from starlette.requests import ClientDisconnect

from app.api.access.callers import first_headers
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
MISSING: Final = object()
"""Of an empty body; None is the JSON text `null`."""
_JSON_TYPE = re.compile(r"application/([a-z0-9!#$&^_.+-]+\+)?json", re.IGNORECASE)
_CHARSET = re.compile(r";\s*charset\s*=\s*\"?([^\s;\"]*)", re.IGNORECASE)
_UNICODE = ("utf-8", "utf8", "us-ascii", "ascii", "utf-16", "utf-16le", "utf-16be", "utf-32")
_CHINESE = ("gbk", "gb2312", "gb18030", "cp936")
_CODECS = dict.fromkeys(_UNICODE) | dict.fromkeys(_CHINESE, "gb18030")
"""By the charset's name in lower case. None: the bytes show which Unicode encoding it is. GB18030 includes GBK."""


async def read_json(request: Request) -> Any:
    """The value in the body; MISSING for an empty body. Raises UnsupportedMedia and InvalidParameter."""
    content_type = first_headers(request.scope).get("content-type", "")
    codec = codec_for(content_type)
    try:
        body = await request.body()
    except ClientDisconnect:  # nobody receives the response
        raise InvalidParameter(BODY, "传输中断") from None
    if not body:
        return MISSING
    if _JSON_TYPE.fullmatch(content_type.partition(";")[0].strip()) is None:
        raise UnsupportedMedia("请求体须为 JSON，请设置 Content-Type: application/json")
    return parse_json(body, codec)


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
