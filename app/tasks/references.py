"""`imageUrl` in its three forms and the links in `params`, judged by form only: nothing is fetched meanwhile."""

import json
from collections.abc import Callable
from typing import Any

from app.egress import validate_url
from app.errors import InvalidParameter
from app.upstreams.action import IMAGE_URL

IsLocalUrl = Callable[[str], object]


def parse_references(image_url: Any, *, most: int, allowed: frozenset[str], owns: IsLocalUrl) -> tuple[str, ...]:
    """The URLs in `imageUrl`: one URL, a JSON array inside a string (the guide's form), or a real array.

    None, "" and [] mean no reference. Raises InvalidParameter naming the field and, in a list, the place.
    """
    if image_url is None or image_url in ("", []):
        return ()
    urls = _parse_list(image_url)
    if len(urls) > most:
        raise InvalidParameter(IMAGE_URL, f"最多 {most} 张参考图" if most else "不适用于该模型")
    for place, url in enumerate(urls):
        field = IMAGE_URL if isinstance(image_url, str) and len(urls) == 1 else f"{IMAGE_URL}[{place}]"
        validate_link(field, url, allowed=allowed, owns=owns)
    return tuple(urls)


def validate_link(field: str, url: Any, *, allowed: frozenset[str], owns: IsLocalUrl) -> None:
    """InvalidParameter for what is no link to a public address. Files this gateway serves itself pass: `owns` them."""
    if not isinstance(url, str) or not url:
        raise InvalidParameter(field, "须为链接")
    problem = validate_url(url, allowed)
    if problem and not owns(url):
        raise InvalidParameter(field, problem)


def _parse_list(image_url: Any) -> list[Any]:
    if isinstance(image_url, list):
        return image_url
    if not isinstance(image_url, str):
        raise InvalidParameter(IMAGE_URL, "须为链接或链接数组")
    if not image_url.lstrip().startswith("["):
        return [image_url]
    try:
        urls = json.loads(image_url)
    except (ValueError, RecursionError):
        raise InvalidParameter(IMAGE_URL, "不是有效的 JSON 数组") from None
    return list(urls)
