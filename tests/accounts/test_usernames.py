"""Usernames: which may be chosen, and which are the same for people who read them."""

import pytest

from app.accounts.log_in.usernames import clean_username, read_user_id, username_key
from app.errors import InvalidParameter


@pytest.mark.parametrize(
    "name",
    [
        "alice",
        "李雷",
        "李雷abc_2024",
        "a.b-c@d.cn",
        "ＡＬＩＣＥ",
        "user+tag",
        "さくらサクラ桜ー",
        "김철수",
        "Иван",
        "Ζωή",
        "José",
        "x" * 64,
    ],
)
def test_names_that_people_choose_are_accepted(name: str) -> None:
    cleaned = clean_username(name)
    assert clean_username(cleaned) == cleaned
    assert username_key(cleaned) == username_key(name)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "须为 2 到 64 个字符"),
        ("a", "须为 2 到 64 个字符"),
        ("x" * 65, "须为 2 到 64 个字符"),
        ("12345678901", "不能全是数字"),
        ("１２３", "不能全是数字"),
        ("a b", "只能包含"),
        (" alice", "只能包含"),
        ("alice\u200b", "只能包含"),  # zero-width space
        ("al\u00adice", "只能包含"),  # soft hyphen
        ("alice\u202eevil", "只能包含"),  # right-to-left override
        ("ali\u0301\u0301\u0301ce", "只能包含"),  # marks on marks
        ("alice\x00", "只能包含"),
        ("alice\n", "只能包含"),
        ("alice\ud800", "只能包含"),
        ("\u3164\u3164", "只能包含"),  # letters that are not seen
        ("ali\ufe0fce", "只能包含"),
        ("alice😀", "只能包含"),
        ("<script>", "只能包含"),
        ("-alice", "须以文字或数字开头和结尾"),
        ("alice.", "须以文字或数字开头和结尾"),
        ("..", "须以文字或数字开头和结尾"),
        ("аlice", "混用了容易混淆的文字"),  # the first letter is Cyrillic
        ("alicе", "混用了容易混淆的文字"),
        ("αlice", "混用了容易混淆的文字"),
        ("сосо", "混用了容易混淆的文字"),  # Cyrillic alone, and looks Latin
        ("admın", "混用了容易混淆的文字"),  # without a dot
        ("ɑdmin", "混用了容易混淆的文字"),
        ("李Иван", "混用了容易混淆的文字"),
        ("ᎪᎪalice", "混用了容易混淆的文字"),
    ],
)
def test_names_that_deceive_or_break_are_refused(name: str, problem: str) -> None:
    with pytest.raises(InvalidParameter) as refused:
        clean_username(name)
    assert refused.value.field == "username"
    assert problem in refused.value.message


@pytest.mark.parametrize(
    ("one", "other"),
    [("Alice", "alice"), ("ＡＬＩＣＥ", "alice"), ("STRASSE", "straße"), ("ﬁona", "fiona"), ("ΣΊΣΥΦΟΣ", "σίσυφος")],
)
def test_names_that_differ_in_case_and_width_only_are_the_same(one: str, other: str) -> None:
    assert username_key(one) == username_key(other)


def test_a_key_is_stable() -> None:
    """Else a name would not find itself again."""
    for name in ("Alice", "İstanbul", "ﬃx", "ΐ", "ŉx", "ᾳ", "x" * 64):
        assert username_key(username_key(name)) == username_key(name)


@pytest.mark.parametrize(
    ("text", "user_id"),
    [
        ("1", 1),
        ("17563793187762127", 17563793187762127),
        (str(2**63 - 1), 2**63 - 1),
        (str(2**63), None),
        ("0", None),
        ("07", None),
        ("-1", None),
        ("１", None),
        ("1.0", None),
        ("", None),
        ("9" * 5000, None),
    ],
)
def test_a_number_is_an_id(text: str, user_id: int | None) -> None:
    assert read_user_id(text) == user_id
