"""The result of a storm, for a terminal and as a page."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.books import CLOCKS_SECONDS, Story, after_the_end
from tests.chaos.hostile import Notice
from tests.chaos.weather import WEIGHTS

Rows = list[tuple[str, Any]]


@dataclass
class Storm:
    """What the report says of one run, beside the records."""

    command: str
    seed: int
    began: str
    storm_seconds: float
    calm_seconds: float  # from the end of all faults to the end of the last task
    struck: Counter[str]
    trouble: Counter[str]  # outcomes at SEE2AI, by its request log
    starts: Counter[str]
    events: Counter[str]  # log lines of the gateway that are worth attention
    notices: dict[str, Notice]  # what the other users noticed without and with the hostile user
    hostile: Counter[str]  # the answers that the hostile user got
    differences: list[str] = field(default_factory=list)


def tables(storm: Storm, story: Story) -> list[tuple[str, Rows]]:
    return [
        ("Tasks", _tasks(story)),
        ("Points", _points(story)),
        ("Jobs at SEE2AI", _jobs(story)),
        ("Callers", _callers(storm, story)),
        ("What others noticed", _notices(storm)),
        ("Answers to the hostile user", sorted(storm.hostile.items())),
        ("Answers of the API", sorted(story.diary.answers.items())),
        ("Faults that struck", [(fault, storm.struck[fault]) for fault in WEIGHTS]),
        ("Trouble made by SEE2AI", [("requests", storm.trouble.total()), *_by_number(storm.trouble)]),
        ("Processes", [(f"starts of {name}", number) for name, number in storm.starts.items()]),
        ("Log lines", _by_number(storm.events)),
    ]


def _by_number(counter: Counter[str]) -> Rows:
    return [(name or "none", number) for name, number in counter.most_common()]


def _tasks(story: Story) -> Rows:
    ends = Counter(task["error_code"] or task["status"] for task in story.tasks)
    return [
        ("submitted", len(story.tasks)),
        *_by_number(ends),
        ("visits that never came back, most in a row", max((task["crashes"] for task in story.tasks), default=0)),
    ]


def _points(story: Story) -> Rows:
    kinds = story.kinds()
    sums = {
        name: sum(account[name] for account in story.accounts)
        for name in ("granted", "available", "held", "spent", "expired")
    }
    return [
        *sums.items(),
        ("granted − available − held − spent − expired", sums["granted"] - sum(list(sums.values())[1:])),
        *((f"entries: {kind}", kinds[kind]) for kind in ("grant", "deduct", "settle", "refund", "expire")),
        ("deduct − settle − refund", kinds["deduct"] - kinds["settle"] - kinds["refund"]),
    ]


def _jobs(story: Story) -> Rows:
    one = [task for word, found in story.by_word.items() for task in found if word in story.jobs]
    return [
        ("submits accepted", sum(len(entries) for entries in story.jobs.values())),
        ("tasks with exactly one accepted job", sum(len(entries) == 1 for entries in story.jobs.values())),
        ("tasks with more than one", sum(len(entries) > 1 for entries in story.jobs.values())),
        ("of tasks that completed", sum(task["status"] == "completed" for task in one)),
        ("of tasks that were refunded", sum(task["status"] == "failed" for task in one)),
        ("tasks flagged as suspected orphans", sum(bool(task["suspected_orphan"]) for task in story.tasks)),
        ("of these with a job", sum(bool(task["suspected_orphan"]) for task in one)),
        ("jobs accepted after the refund", sum(seconds > CLOCKS_SECONDS for _, seconds in after_the_end(story))),
    ]


def _callers(storm: Storm, story: Story) -> Rows:
    diary = story.diary
    return [
        ("submits answered with a task", diary.accepted),
        ("of these under a key", sum(word in diary.keyed for word in diary.payload)),
        ("tasks whose caller got no answer", len(story.by_word.keys() - diary.payload.keys())),
        ("submits given up", diary.given_up),
        ("tasks cancelled by their caller", len(diary.cancelled)),
        ("top-ups", len(story.orders)),
        ("seconds of the storm", round(storm.storm_seconds)),
        ("seconds from its end to the end of the last task", round(storm.calm_seconds, 1)),
        ("longest time in which no API answered, seconds", round(diary.longest_gap(diary.alive_at), 1)),
        ("longest time in which no submit was accepted, seconds", round(diary.longest_gap(diary.accepted_at), 1)),
    ]


def _notices(storm: Storm) -> Rows:
    rows: Rows = []
    for name, one in storm.notices.items():
        rows += [
            (f"periods {name} the hostile user", one.periods),
            (f"requests {name}", one.requests),
            (f"answered as they should be {name}, median of periods", f"{one.success:.1%}"),
            (f"p95 {name}, seconds, median of periods", round(one.p95_seconds, 3)),
        ]
    without, with_ = (one.p95_seconds for one in storm.notices.values())
    return [*rows, ("ratio of the p95", round(with_ / without, 2) if without else "none")]


def as_text(storm: Storm, story: Story) -> str:
    lines = [f"seed {storm.seed}, {storm.began}"]
    for title, rows in tables(storm, story):
        lines += ["", title]
        lines += [f"  {value!s:>9}  {name}" for name, value in rows]
    return "\n".join([*lines, "", *_result(storm)])


def _result(storm: Storm) -> list[str]:
    if not storm.differences:
        return ["gateway audit: ok. Nothing differs."]
    return [f"{len(storm.differences)} DIFFERENCES", *[f"  {line}" for line in storm.differences]]


HEAD = """# A storm

`make chaos` puts two API processes and two workers on servers of their own (MariaDB, Redis, S3 over HTTP, the sandbox \
as SEE2AI), lets callers submit, repeat, double-click, hang up, cancel and run out of points, and meanwhile kills, \
stops and freezes everything in reach, while 30 % of what SEE2AI is asked for goes wrong. Then all faults end, every \
task must end, and the books of the database, of SEE2AI's journal, of the bucket and of the callers must agree; else \
it exits 1. The schedule follows from the seed; what the machine makes of it does not.

This is one run, as the command wrote it:
"""


def as_page(storm: Storm, story: Story) -> str:
    lines = [HEAD, "```bash", storm.command, "```", "", f"{storm.began}, seed {storm.seed}. **{_short(storm)}**"]
    for title, rows in tables(storm, story):
        lines += ["", f"## {title}", "", "| | |", "|---|---:|"]
        lines += [f"| {name} | {value} |" for name, value in rows]
    if storm.differences:
        lines += ["", "## Differences", "", *[f"- {line}" for line in storm.differences]]
    return "\n".join(lines) + "\n"


def _short(storm: Storm) -> str:
    if storm.differences:
        return f"{len(storm.differences)} differences, listed at the end."
    return "`gateway audit` says ok, and nothing differs."
