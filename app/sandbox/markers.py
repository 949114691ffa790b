"""The grammar of `[[sandbox: …]]`: from a prompt's markers to a Plan. Pure; it knows neither HTTP nor time.

    marker   = "[[sandbox:" clause { ";" clause } "]]"
    clause   = place trouble | outcome
    place    = "submit" | "poll" | "result"            (and "upload", for /control only: an upload has no prompt)
    trouble  = ( "fail" CODE | CODE | KIND [ argument ] ) { count | "retry-after" N | "detail" FORM | "text" }
    count    = "once" | "twice" | N "times" | "always"                       (always, where none is given)

Which KIND a place knows, and what each takes, is the table `KINDS`; outcomes are the table `OUTCOMES`.
Words are case-blind, quoted text is not. Anything else raises MarkerError, which names the word.
"""

import re
from collections.abc import Callable
from dataclasses import replace

from app.sandbox.plan import DETAIL_FORMS, FAILURE_WORDS, PLACES, SUCCESS_WORDS, Plan, Trouble
from app.sandbox.words import TOKEN, MarkerError, Words, split_clauses

MARKER = re.compile(r'\[\[sandbox:((?:"[^"]*"|(?!\]\]).)*)\]\]', re.IGNORECASE | re.DOTALL)
OPENING = re.compile(r"\[\[\s*sandbox", re.IGNORECASE)
PRIVATE_URL = "http://169.254.169.254/x.jpg"
MOST_IMAGES = 20
LARGEST_BYTES = 10**12

_BARE = dict.fromkeys(("reset", "html", "gzip-bomb", "huge", "drip"), "")
_BAD_MANNERS = {"hang": "seconds?", "redirect": "text"} | _BARE
_BAD_ANSWERS = _BAD_MANNERS | {"malformed": "", "wrapped": ""}
KINDS: dict[str, dict[str, str]] = {
    "submit": _BAD_ANSWERS | {"no-task-id": "", "reuse-task-id": ""},
    "poll": _BAD_ANSWERS | {"wrong-task-id": ""},
    "result": _BAD_MANNERS
    | {"not-an-image": "", "svg": "", "webp": "", "empty": "", "truncated": "", "pixel-bomb": ""}
    | {"lies-about-length": "bytes?", "content-type": "text"},
    "upload": _BAD_ANSWERS,
}
"""Per place, each kind of trouble and the argument it takes; `?` marks an optional one."""


def parse_prompt(prompt: str) -> Plan:
    """The plan of all markers in the prompt, in their order. Raises MarkerError."""
    if len(OPENING.findall(prompt)) != len(MARKER.findall(prompt)):
        raise MarkerError("[[sandbox", 'markers of the form "[[sandbox: …]]"')
    plan = Plan()
    for inside in MARKER.findall(prompt):
        for clause in split_clauses(inside):
            if clause.next == "upload":
                raise MarkerError("upload", "a place a prompt can reach; uploads are troubled through /control")
            plan = _apply(plan, clause)
    return plan


def parse_trouble(clause: str) -> Trouble:
    """One `submit …`, `poll …`, `result …` or `upload …` clause, as /control takes it. Raises MarkerError."""
    plan = _apply(Plan(), Words(TOKEN.finditer(clause)))
    if not plan.troubles:
        raise MarkerError(clause, "a trouble of submit, poll, result or upload")
    return plan.troubles[0]


def visible_text(prompt: str) -> str:
    """The prompt as a picture shows it: without markers, unless nothing else is there."""
    return MARKER.sub("", prompt).strip() or prompt.strip()


def _apply(plan: Plan, words: Words) -> Plan:
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


def _take_trouble(where: str, words: Words) -> Trouble:
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


def _take_code(words: Words) -> int:
    word = words.take("a status code from 400 to 599")
    if not re.fullmatch(r"[45]\d\d", word):
        raise MarkerError(word, "a status code from 400 to 599")
    return int(word)


def _take_argument(trouble: Trouble, argument: str, words: Words) -> Trouble:
    if argument == "text":
        return replace(trouble, text=words.take(f"what to {trouble.kind}"))
    if argument == "seconds?" and words.number_follows():
        return replace(trouble, seconds=words.take_seconds())
    if argument == "bytes?" and words.number_follows():
        return replace(trouble, claimed_bytes=words.take_whole("a number of bytes", 10**15))
    return trouble


def _take_modifier(trouble: Trouble, words: Words) -> Trouble:
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


def _take_count(words: Words) -> int | None:
    expected = "once | twice | N times | always"
    word = words.take(expected)
    named = {"once": 1, "twice": 2, "always": None}
    if word.lower() in named:
        return named[word.lower()]
    if not word.isdigit() or words.next not in {"times", "time"}:
        raise MarkerError(word, expected)
    words.take("times")
    return int(word)


def _take_success(plan: Plan, words: Words) -> Plan:
    words.take_one_of(("without",))
    words.take_one_of(("url",))
    return replace(plan, looks_without_url=_take_count(words) if words else None)


def _take_never(plan: Plan, words: Words) -> Plan:
    words.take_one_of(("finish",))
    return replace(plan, never_finishes=True)


def _take_approval(plan: Plan, words: Words) -> Plan:
    seconds = words.take_seconds()
    return replace(plan, approval_seconds=seconds, is_granted=bool(words and words.take_one_of(("granted",))))


def _take_end(plan: Plan, words: Words) -> Plan:
    word = words.take_one_of((*FAILURE_WORDS, *SUCCESS_WORDS))
    return replace(plan, end_word=word, end_reason=words.take("a reason") if words.is_quoted else "")


def _take_progress(plan: Plan, words: Words) -> Plan:
    word = words.take("numbers as in 10,40,80")
    if not re.fullmatch(r"\d{1,3}(,\d{1,3})*", word):
        raise MarkerError(word, "numbers as in 10,40,80")
    return replace(plan, progress=tuple(int(number) for number in word.split(",")))


def _take_images(plan: Plan, words: Words) -> Plan:
    return replace(plan, images=words.take_whole(f"a whole number up to {MOST_IMAGES}", MOST_IMAGES))


def _take_size(plan: Plan, words: Words) -> Plan:
    return replace(plan, size_bytes=words.take_whole(f"a number of bytes up to {LARGEST_BYTES}", LARGEST_BYTES))


Outcome = Callable[[Plan, Words], Plan]
OUTCOMES: dict[str, Outcome] = {
    "take": lambda plan, words: replace(plan, take_seconds=words.take_seconds()),
    "never": _take_never,
    "approval": _take_approval,
    "end": _take_end,
    "state": lambda plan, words: replace(plan, running_word=words.take("a word")),
    "progress": _take_progress,
    "field": lambda plan, words: replace(plan, field=words.take_one_of(("state", "status", "both")).lower()),
    "place": lambda plan, words: replace(plan, place=words.take_one_of(PLACES).lower()),
    "success": _take_success,
    "images": _take_images,
    "size": _take_size,
}
RESULT_OUTCOMES: dict[str, Outcome] = {
    "expires": lambda plan, words: replace(plan, expires_seconds=words.take_seconds()),
    "private": lambda plan, _: replace(plan, foreign_url=PRIVATE_URL),
    "url": lambda plan, words: replace(plan, foreign_url=words.take("a URL")),
}
