"""Reads `imageUrl` in its four forms, and URLs in `params`. Nothing is fetched."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from app.egress import InvalidUrl, escape_url
from app.errors import InvalidParameter
from app.upstreams.action import IMAGE_URL

_COMMA_BEFORE_URL = re.compile(r",(?=\s*https?://)", re.IGNORECASE)
"""A URL may contain commas, but not one before another URL: that has to be written as `%2C`."""


@dataclass(frozen=True, slots=True)
class LinkRules:
    """Which links a caller may send: public URLs, `allowed` origins, and files that this gateway serves."""

    allowed: frozenset[str]
    is_local_url: Callable[[str], object]


def parse_references(image_url: Any, *, max_count: int, rules: LinkRules) -> tuple[str, ...]:
    """The URLs in `imageUrl`, as SEE2AI gets them. None, "" and [] mean no reference.

    `imageUrl` is one URL, several joined by commas, a JSON array inside a string, or a real array. Raises
    InvalidParameter with the field and, in a list, the index.
    """
    if image_url is None or image_url in ("", []):
        return ()
    urls = _parse_list(image_url)
    if len(urls) > max_count:
        raise InvalidParameter(IMAGE_URL, f"最多 {max_count} 张参考图" if max_count else "不适用于该模型")
    is_single = isinstance(image_url, str) and len(urls) == 1
    fields = [IMAGE_URL] if is_single else [f"{IMAGE_URL}[{index}]" for index in range(len(urls))]
    return tuple(read_link(field, url, rules) for field, url in zip(fields, urls, strict=True))


def stored_image_url(image_url: Any, urls: tuple[str, ...]) -> str | list[str] | None:
    """What a task stores and shows of `imageUrl`, whose URLs are `urls`: a string or a list, as the caller wrote it.

    A string that is longer than its URLs need, even indented and escaped, is written anew: it may be a million blanks.
    """
    if not urls:
        return None
    if not isinstance(image_url, str):
        return list(urls)
    longest = json.dumps(urls, indent=4) if _is_array(image_url) else ", ".join(urls)
    if len(image_url) <= len(longest):
        return image_url
    return json.dumps(urls, ensure_ascii=False) if _is_array(image_url) else ",".join(urls)


def read_link(field: str, url: Any, rules: LinkRules) -> str:
    """The URL as SEE2AI gets it: blanks and letters outside ASCII are escaped, as browsers do.

    Raises InvalidParameter for a link that breaks the rules.
    """
    if not isinstance(url, str) or not url:
        raise InvalidParameter(field, "须为链接")
    if rules.is_local_url(url):
        return url
    try:
        return escape_url(url, rules.allowed)
    except InvalidUrl as problem:
        raise InvalidParameter(field, str(problem)) from None


def _parse_list(image_url: Any) -> list[Any]:
    if isinstance(image_url, list):
        return image_url
    if not isinstance(image_url, str):
        raise InvalidParameter(IMAGE_URL, "须为链接或链接数组")
    if not _is_array(image_url):
        parts = _COMMA_BEFORE_URL.split(image_url)
        return [part.strip() for part in parts] if len(parts) > 1 else parts
    try:
        urls = json.loads(image_url)
    except (ValueError, RecursionError):
        raise InvalidParameter(IMAGE_URL, "不是有效的 JSON 数组") from None
    return list(urls)


def _is_array(image_url: str) -> bool:
    return image_url.lstrip().startswith("[")
