"""Which usernames people may choose, and when two of them are the same.

People compare names by eye. So letters of scripts that look alike are not mixed, and nothing in a name is invisible.
"""

import unicodedata

from app.accounts.credentials import MAX_USER_ID
from app.errors import InvalidParameter

MIN_LENGTH, MAX_LENGTH = 2, 64
MAX_ID_DIGITS = len(str(MAX_USER_ID))
SIGNS = frozenset("._-@+")
MIXED_SCRIPTS = frozenset(
    {"LATIN", "CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "HANGUL", "BOPOMOFO"}
)
"""Scripts that people mix, and whose letters do not look like those of the others."""
INVISIBLE_LETTERS = frozenset("\u115f\u1160\u3164\uffa0")
LATIN_LETTERS = frozenset("ßæœøđðþħł")
"""Beside those that are a letter of the alphabet with accents. Others, such as `ı` and `ɑ`, look like one of it."""
LATIN_LOOKALIKES = frozenset("аеорсухѕіјһԁԛԝоικνοραυχѵ")
"""Cyrillic and Greek letters. A name that has no others looks like a Latin one."""


def username_key(username: str) -> str:
    """What is equal for two names that are the same without regard to case and width."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", username).casefold())


def clean_username(username: str) -> str:
    """The name in its normal form. Raises InvalidParameter for a name that a user must not choose."""
    name = unicodedata.normalize("NFKC", username)
    if not MIN_LENGTH <= len(name) <= MAX_LENGTH:
        raise _refused(f"须为 {MIN_LENGTH} 到 {MAX_LENGTH} 个字符")
    if not all(_is_letter(one) or _is_digit(one) or one in SIGNS for one in name):
        raise _refused("只能包含文字、数字和 . _ - @ +")
    if name[0] in SIGNS or name[-1] in SIGNS:
        raise _refused("须以文字或数字开头和结尾")
    if all(_is_digit(one) for one in name):
        raise _refused("不能全是数字")  # a number is a user's id
    letters = [one for one in name.casefold() if not (_is_digit(one) or one in SIGNS)]
    scripts = {_script_of(one) for one in letters}
    if not (scripts <= MIXED_SCRIPTS or len(scripts) == 1) or not all(_is_clear(one) for one in letters):
        raise _refused("混用了容易混淆的文字")
    if letters and all(one in LATIN_LOOKALIKES for one in letters):
        raise _refused("混用了容易混淆的文字")
    return name


def read_user_id(username: str) -> int | None:
    """The id that somebody wrote in place of a name. An id is written in one way only, because tries are counted."""
    is_number = username.isascii() and username.isdecimal() and username[0] != "0" and len(username) <= MAX_ID_DIGITS
    return int(username) if is_number and int(username) <= MAX_USER_ID else None


def _refused(problem: str) -> InvalidParameter:
    return InvalidParameter("username", problem)


def _is_letter(character: str) -> bool:
    return unicodedata.category(character).startswith("L") and character not in INVISIBLE_LETTERS


def _is_digit(character: str) -> bool:
    return character.isascii() and character.isdecimal()


def _script_of(letter: str) -> str:
    """The first word of the letter's name is its script: `CYRILLIC SMALL LETTER A`."""
    return unicodedata.name(letter, "").split(" ")[0].split("-")[0] or "UNKNOWN"


def _is_clear(letter: str) -> bool:
    """Whether a Latin letter is one that people tell from the others."""
    if _script_of(letter) != "LATIN" or letter in LATIN_LETTERS:
        return True
    base = unicodedata.normalize("NFD", letter)[0]
    return base.isascii() and base.isalpha()
