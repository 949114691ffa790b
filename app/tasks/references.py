"""`imageUrl` in its three forms, judged by form only: nothing is resolved or fetched while the caller waits."""

import json
from typing import Any

from app.egress import check_url_form
from app.errors import InvalidParameter

FIELD = "imageUrl"


def read_references(image_url: Any, *, most: int, allowed: frozenset[str]) -> tuple[str, ...]:
    """The URLs in `imageUrl`: one URL, a JSON array inside a string (the guide's form), or a real array.

    None, "" and [] mean no reference. Raises InvalidParameter naming the field and, in a list, the place.
    """
    if image_url is None or image_url in ("", []):
        return ()
    urls = _unfold(image_url)
    if len(urls) > most:
        raise InvalidParameter(FIELD, f"最多 {most} 张参考图")
    for place, url in enumerate(urls):
        field = FIELD if isinstance(image_url, str) and len(urls) == 1 else f"{FIELD}[{place}]"
        if not isinstance(url, str) or not url:
            raise InvalidParameter(field, "须为图片链接")
        problem = check_url_form(url, allowed)
        if problem:
            raise InvalidParameter(field, problem)
    return tuple(urls)


def _unfold(image_url: Any) -> list[Any]:
    if isinstance(image_url, list):
        return image_url
    if not isinstance(image_url, str):
        raise InvalidParameter(FIELD, "须为链接或链接数组")
    if not image_url.lstrip().startswith("["):
        return [image_url]
    try:
        urls = json.loads(image_url)
    except (ValueError, RecursionError):
        raise InvalidParameter(FIELD, "不是有效的 JSON 数组") from None
    return list(urls)
