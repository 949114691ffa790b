"""The words of a marker's clauses, taken from the left; a word that does not fit raises MarkerError."""

import re
from collections.abc import Iterable

TOKEN = re.compile(r'"([^"]*)"|;|[^\s;"]+')


class MarkerError(ValueError):
    """A marker that was not understood. `word` is the first that did not fit; empty at the clause's end."""

    def __init__(self, word: str, expected: str) -> None:
        self.word = word
        super().__init__(f"sandbox marker not understood at {word!r}: expected {expected}")


class Words:
    """The words of one clause, taken from the left."""

    def __init__(self, tokens: Iterable[re.Match[str]]) -> None:
        self._tokens = [(t[0] if t[1] is None else t[1], t[1] is not None) for t in tokens]

    def __bool__(self) -> bool:
        return bool(self._tokens)

    @property
    def next(self) -> str:
        """The next word in lower case; empty where the clause ends or a quoted text stands there."""
        return self._tokens[0][0].lower() if self._tokens and not self._tokens[0][1] else ""

    @property
    def is_quoted(self) -> bool:
        return bool(self._tokens) and self._tokens[0][1]

    def take(self, expected: str) -> str:
        if not self._tokens:
            raise MarkerError("", expected)
        return self._tokens.pop(0)[0]

    def take_one_of(self, choices: tuple[str, ...]) -> str:
        word = self.take(" | ".join(choices))
        if word.lower() not in choices:
            raise MarkerError(word, " | ".join(choices))
        return word

    def take_seconds(self) -> float:
        word = self.take("seconds")
        if not re.fullmatch(r"\d{1,9}(\.\d{1,6})?", word):
            raise MarkerError(word, "seconds")
        return float(word)

    def take_whole(self, expected: str, most: int = 10**9) -> int:
        word = self.take(expected)
        if not re.fullmatch(r"[0-9]{1,16}", word) or int(word) > most:
            raise MarkerError(word, expected)
        return int(word)

    def number_follows(self) -> bool:
        """Whether a bare number stands next, which is not the N of `N times`."""
        follows_times = len(self._tokens) > 1 and self._tokens[1][0].lower() == "times"
        return bool(re.fullmatch(r"\d+(\.\d+)?", self.next)) and not follows_times


def split_clauses(inside: str) -> list[Words]:
    """The clauses between a marker's brackets."""
    clauses: list[list[re.Match[str]]] = [[]]
    for token in TOKEN.finditer(inside):
        if token.group(0) == ";":
            clauses.append([])
        else:
            clauses[-1].append(token)
    return [Words(tokens) for tokens in clauses]
