"""`imageUrl` in its four forms: which links it holds, and what of it a task keeps. Nothing is sent or stored."""

import json
from typing import Any

import pytest

from app.errors import InvalidParameter
from app.files.references import LinkRules, parse_references, stored_image_url

A, B, C = "https://example.com/a.jpg", "http://example.org/b.png?x=1,2", "HTTPS://example.com/c,d.webp"
MANY = [f"https://example.com/{number}.jpg" for number in range(14)]


def parse(image_url: Any) -> tuple[str, ...]:
    return parse_references(image_url, max_count=14, rules=LinkRules(frozenset(), lambda _: None))


def stored(image_url: Any) -> Any:
    return stored_image_url(image_url, parse(image_url))


def test_links_joined_by_commas_are_a_list() -> None:
    for joined in (f"{A},{B},{C}", f"{A}, {B} ,\n{C}", f" {A},{B},{C} "):
        assert parse(joined) == (A, B, C)
    assert parse(",".join(MANY)) == tuple(MANY)
    assert parse(f"{A},,{B}") == (f"{A},", B), "a link may end in a comma"


def test_a_comma_inside_a_link_joins_nothing() -> None:
    for link in (
        B,
        C,
        f"{A},",
        f"{A},b.jpg",
        f"{A},w_200/x.jpg",
        f"https://example.com/x?u={A}%2C{B}",
        f"{A},ftp://b.c/",
    ):
        assert parse(link) == (link,)
    assert parse([f"{A},{B}"]) == (f"{A},{B}",), "a list says itself where a link ends"


@pytest.mark.parametrize(
    ("joined", "problem"),
    [
        (f"{A},http://127.0.0.1/x", r"imageUrl\[1\] 不能指向内网地址"),
        (f"http://,{A}", r"imageUrl\[0\] 主机名或端口无效"),
        (f"{A}\n{B}", "imageUrl 含有空格或非法字符"),
        (",".join([*MANY, A]), "imageUrl 最多 14 张参考图"),
        (",https://" * 20_000, "imageUrl 最多 14 张参考图"),
    ],
)
def test_a_part_that_is_no_link_is_named(joined: str, problem: str) -> None:
    with pytest.raises(InvalidParameter, match=problem):
        parse(joined)


@pytest.mark.parametrize(
    "image_url",
    [
        *(A, [A], MANY, f"{A},{B}", f"{A}, {B}"),
        *(json.dumps(MANY), json.dumps([A, B], separators=(",", ":")), json.dumps(MANY, indent=4), f' ["{A}"]'),
        json.dumps(["https://例え.jp/写真.jpg"]),
    ],
)
def test_what_is_written_as_usual_is_kept_as_it_came(image_url: Any) -> None:
    assert stored(image_url) == image_url


def test_what_is_padded_is_written_anew() -> None:
    blanks = " " * 970_000
    assert stored(f'[{blanks}"{A}"{blanks},"{B}"]') == json.dumps([A, B])
    assert stored(f'{blanks}["{A}"]') == f'["{A}"]'
    assert stored(f"{A},{blanks}{B}{blanks}") == f"{A},{B}"
    escaped = "".join(f"\\u{ord(letter):04x}" for letter in A)
    assert stored(f'["{escaped}"]') == f'["{A}"]'


def test_nothing_is_stored_as_nothing() -> None:
    for nothing in (None, "", [], "[]", f" [{' ' * 1000}] "):
        assert stored(nothing) is None
