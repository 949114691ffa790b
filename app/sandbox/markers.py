"""The grammar of `[[sandbox: …]]`: from a prompt's markers to a Plan. Pure; it knows neither HTTP nor time.

    marker   = "[[sandbox:" clause { ";" clause } "]]"
    clause   = place trouble | outcome
    place    = "submit" | "poll" | "result"
    trouble  = ( "fail" CODE | CODE | KIND [ argument ] ) { count | "retry-after" N | "detail" FORM | "text" }
    count    = "once" | "twice" | N "times" | "always"                       (always, where none is given)

Which KIND a place knows, and what each takes, is the table `KINDS`; outcomes are the table `OUTCOMES`.
Words are case-blind, quoted text is not. Anything else raises MarkerError, which names the word.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

MARKER = re.compile(r'\[\[sandbox:((?:"[^"]*"|(?!\]\]).)*)\]\]', re.IGNORECASE | re.DOTALL)
OPENING = re.compile(r"\[\[\s*sandbox", re.IGNORECASE)
TOKEN = re.compile(r'"([^"]*)"|;|[^\s;"]+')
DETAIL_FORMS = ("string", "list", "error.message", "message", "error_message", "not-json", "html")
FAILURE_WORDS = (
    *("failed", "failure", "error", "cancelled", "canceled"),
    *("rejected", "expired", "timeout", "needs_repair"),
)
SUCCESS_WORDS = ("success", "succeeded", "completed", "complete", "done", "finished")
PRIVATE_URL = "http://169.254.169.254/x.jpg"
MOST_IMAGES = 20

_BARE = dict.fromkeys(("reset", "html", "gzip-bomb", "huge", "drip"), "")
_BAD_MANNERS = {"hang": "seconds?", "redirect": "text"} | _BARE
_BAD_ANSWERS = _BAD_MANNERS | {"malformed": "", "wrapped": ""}
KINDS: dict[str, dict[str, str]] = {
    "submit": _BAD_ANSWERS | {"no-task-id": "", "reuse-task-id": ""},
    "poll": _BAD_ANSWERS | {"wrong-task-id": ""},
    "result": _BAD_MANNERS
    | {"not-an-image": "", "svg": "", "webp": "", "empty": "", "truncated": "", "pixel-bomb": ""}
    | {"lies-about-length": "bytes?", "content-type": "text"},
}
"""Per place, each kind of trouble and the argument it takes; `?` marks an optional one."""


class MarkerError(ValueError):
    """A marker that was not understood. `word` is the first that did not fit; empty at the clause's end."""

    def __init__(self, word: str, expected: str) -> None:
        self.word = word
        super().__init__(f"sandbox marker not understood at {word!r}: expected {expected}")


@dataclass(frozen=True, slots=True)
class Trouble:
    """One way to misbehave at one place. `times` None means always."""

    where: str
    kind: str
    times: int | None = None
    code: int = 0
    seconds: float | None = None
    claimed_bytes: int | None = None
    retry_after_seconds: int | None = None
    detail: str = "string"
    text: str = ""

    @property
    def name(self) -> str:
        """As the journal shows it, e.g. `submit fail 503`."""
        return f"{self.where} {self.kind}" + (f" {self.code}" if self.code else "")


@dataclass(frozen=True, slots=True)
class Plan:
    """What the markers of one prompt ask for; a prompt without markers asks for the defaults."""

    troubles: tuple[Trouble, ...] = ()
    take_seconds: float | None = None
    never_finishes: bool = False
    end_word: str = ""
    end_reason: str = ""
    running_word: str = ""
    progress: tuple[int, ...] = ()
    field: str = "both"
    looks_without_url: int | None = 0
    images: int = 1
    expires_seconds: float = 3600.0
    foreign_url: str = ""

    @property
    def succeeds(self) -> bool:
        return self.end_word.lower() not in FAILURE_WORDS


def parse_prompt(prompt: str) -> Plan:
    """The plan of all markers in the prompt, in their order. Raises MarkerError."""
    if len(OPENING.findall(prompt)) != len(MARKER.findall(prompt)):
        raise MarkerError("[[sandbox", 'markers of the form "[[sandbox: …]]"')
    plan = Plan()
    for inside in MARKER.findall(prompt):
        for clause in _split_clauses(inside):
            plan = _apply(plan, clause)
    return plan


def parse_trouble(clause: str) -> Trouble:
    """One `submit …`, `poll …` or `result …` clause, as /control takes it. Raises MarkerError."""
    plan = _apply(Plan(), _Words(TOKEN.finditer(clause)))
    if not plan.troubles:
        raise MarkerError(clause, "a trouble of submit, poll or result")
    return plan.troubles[0]


def visible_text(prompt: str) -> str:
    """The prompt as a picture shows it: without markers, unless nothing else is there."""
    return MARKER.sub("", prompt).strip() or prompt.strip()


class _Words:
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


def _split_clauses(inside: str) -> list[_Words]:
    clauses: list[list[re.Match[str]]] = [[]]
    for token in TOKEN.finditer(inside):
        if token.group(0) == ";":
            clauses.append([])
        else:
            clauses[-1].append(token)
    return [_Words(tokens) for tokens in clauses]


def _apply(plan: Plan, words: _Words) -> Plan:
    first = words.take_one_of((*KINDS, *OUTCOMES)).lower()
    if first == "result" and words.next in RESULT_OUTCOMES:
        plan = RESULT_OUTCOMES[words.take("").lower()](plan, words)
    elif first in KINDS:
        plan = replace(plan, troubles=(*plan.troubles, _take_trouble(first, words)))
    else:
        plan = OUTCOMES[first](plan, words)
    if words:
        raise MarkerError(words.take(""), "the end of the clause")
    return plan


def _take_trouble(where: str, words: _Words) -> Trouble:
    if words.next == "fail":
        words.take("fail")
        trouble = Trouble(where, "fail", code=_take_code(words))
    elif words.next.isdigit():
        trouble = Trouble(where, "fail", code=_take_code(words))
    else:
        kind = words.take_one_of(("fail", *KINDS[where])).lower()
        trouble = _take_argument(Trouble(where, kind), KINDS[where][kind], words)
    while words:
        trouble = _take_modifier(trouble, words)
    return trouble


def _take_code(words: _Words) -> int:
    word = words.take("a status code from 400 to 599")
    if not re.fullmatch(r"[45]\d\d", word):
        raise MarkerError(word, "a status code from 400 to 599")
    return int(word)


def _take_argument(trouble: Trouble, argument: str, words: _Words) -> Trouble:
    if argument == "text":
        return replace(trouble, text=words.take(f"what to {trouble.kind}"))
    if argument == "seconds?" and words.number_follows():
        return replace(trouble, seconds=words.take_seconds())
    if argument == "bytes?" and words.number_follows():
        return replace(trouble, claimed_bytes=words.take_whole("a number of bytes", 10**15))
    return trouble


def _take_modifier(trouble: Trouble, words: _Words) -> Trouble:
    if trouble.kind == "fail":
        if words.is_quoted:
            return replace(trouble, text=words.take("a text"))
        if words.next == "retry-after":
            words.take("retry-after")
            return replace(trouble, retry_after_seconds=words.take_whole("whole seconds"))
        if words.next == "detail":
            words.take("detail")
            return replace(trouble, detail=words.take_one_of(DETAIL_FORMS).lower())
    return replace(trouble, times=_take_count(words))


def _take_count(words: _Words) -> int | None:
    expected = "once | twice | N times | always"
    word = words.take(expected)
    named = {"once": 1, "twice": 2, "always": None}
    if word.lower() in named:
        return named[word.lower()]
    if not word.isdigit() or words.next not in {"times", "time"}:
        raise MarkerError(word, expected)
    words.take("times")
    return int(word)


def _take_success(plan: Plan, words: _Words) -> Plan:
    words.take_one_of(("without",))
    words.take_one_of(("url",))
    return replace(plan, looks_without_url=_take_count(words) if words else None)


def _take_never(plan: Plan, words: _Words) -> Plan:
    words.take_one_of(("finish",))
    return replace(plan, never_finishes=True)


def _take_end(plan: Plan, words: _Words) -> Plan:
    word = words.take_one_of((*FAILURE_WORDS, *SUCCESS_WORDS))
    return replace(plan, end_word=word, end_reason=words.take("a reason") if words.is_quoted else "")


def _take_progress(plan: Plan, words: _Words) -> Plan:
    word = words.take("numbers as in 10,40,80")
    if not re.fullmatch(r"\d{1,3}(,\d{1,3})*", word):
        raise MarkerError(word, "numbers as in 10,40,80")
    return replace(plan, progress=tuple(int(number) for number in word.split(",")))


def _take_images(plan: Plan, words: _Words) -> Plan:
    return replace(plan, images=words.take_whole(f"a whole number up to {MOST_IMAGES}", MOST_IMAGES))


Outcome = Callable[[Plan, _Words], Plan]
OUTCOMES: dict[str, Outcome] = {
    "take": lambda plan, words: replace(plan, take_seconds=words.take_seconds()),
    "never": _take_never,
    "end": _take_end,
    "state": lambda plan, words: replace(plan, running_word=words.take("a word")),
    "progress": _take_progress,
    "field": lambda plan, words: replace(plan, field=words.take_one_of(("state", "status", "both")).lower()),
    "success": _take_success,
    "images": _take_images,
}
RESULT_OUTCOMES: dict[str, Outcome] = {
    "expires": lambda plan, words: replace(plan, expires_seconds=words.take_seconds()),
    "private": lambda plan, _: replace(plan, foreign_url=PRIVATE_URL),
    "url": lambda plan, words: replace(plan, foreign_url=words.take("a URL")),
}
