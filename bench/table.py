"""The table of benchmarks: each row is a figure beside its limit, and both were measured in turns.

A benchmark is a module with `async def rows(options) -> list[Row]`. It runs alone, or in `python -m bench`.
"""

import argparse
import asyncio
import json
import os
import platform
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import redis

from bench.harness import MYSQL, REDIS, Harness
from bench.paired_runs import Slice, cpu_milliseconds
from bench.report import processor
from tests.support.sql import run_sql

READS_ONLY = "reads only"
CLEAN = "clean"
SECONDS, PAIRS = 3.0, 6

Rows = Callable[[argparse.Namespace], Awaitable["list[Row]"]]


@dataclass
class Row:
    """One figure and its limit, a number for each pair of slices. The ratio is the median of the pairs' ratios.

    `at_least` or `at_most` is the goal for the ratio. `cpu` is in milliseconds for each piece of work: of what is
    measured, and of its limit. `audit` is what the audit found. `missing` says why there are no figures.
    """

    name: str
    limit_name: str
    unit: str = "/s"
    figures: list[float] = field(default_factory=list)
    limits: list[float] = field(default_factory=list)
    at_least: float | None = None
    at_most: float | None = None
    cpu: tuple[float, float] | None = None
    audit: str = READS_ONLY
    notes: list[str] = field(default_factory=list)
    missing: str = ""

    @property
    def ratio(self) -> float:
        return median(a / b for a, b in zip(self.figures, self.limits, strict=True))

    @property
    def goal(self) -> str:
        if self.at_least is not None:
            return f"≥ {self.at_least:g}"
        return "" if self.at_most is None else f"≤ {self.at_most:g}"

    @property
    def is_met(self) -> bool | None:
        """None where there is no goal or no figure."""
        if self.missing or not self.goal:
            return None
        if self.at_least is not None:
            return self.ratio >= self.at_least
        return self.ratio <= float(self.at_most or 0)

    @property
    def is_wrong(self) -> bool:
        """Whether the books were wrong afterwards: then speed is worth nothing."""
        return self.audit not in {READS_ONLY, CLEAN}

    def cells(self) -> list[str]:
        if self.missing:
            return [self.name, "not measured", self.goal, "", "", "", "", self.missing]
        digits = 0 if self.unit == "/s" else 2
        state = {True: "met", False: "missed", None: ""}[self.is_met]
        figure, limit = (f"{median(each):.{digits}f} {self.unit}" for each in (self.figures, self.limits))
        cpu = "" if self.cpu is None else f"{self.cpu[0]:.3f} / {self.cpu[1]:.3f} ms"
        return [self.name, f"{self.ratio:.2f}", self.goal, state, figure, limit, cpu, self.audit]

    def as_dict(self) -> dict[str, Any]:
        values = {name: value for name, value in vars(self).items() if name not in {"at_least", "at_most"}}
        if self.missing:
            return values | {"goal": self.goal}
        return values | {"goal": self.goal, "is_met": self.is_met, "ratio": self.ratio}


HEADER = ["row", "ratio", "goal", "", "measured", "limit", "CPU of one (measured / limit)", "books"]


def row_of_rates(name: str, limit_name: str, ours: list[Slice], bare: list[Slice], **options: Any) -> Row:
    """A row of the rates of slices."""
    figures, limits = [one.rate for one in ours], [one.rate for one in bare]
    cpu = (cpu_milliseconds(ours), cpu_milliseconds(bare)) if all(sum(s.cpu for s in x) for x in (ours, bare)) else None
    return Row(name, limit_name, "/s", figures, limits, cpu=cpu, **options)


async def audit(harness: Harness) -> str:
    violations = await harness.violations()
    return CLEAN if not violations else f"{len(violations)} violations: {violations[0]}"


def print_table(rows: list[Row]) -> None:
    table = [HEADER, *(row.cells() for row in rows)]
    widths = [max(len(line[place]) for line in table) for place in range(len(HEADER))]
    print(f"\n{datetime.now(UTC):%Y-%m-%d}, {processor()}")
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    for row in rows:
        for note in [f"limit: {row.limit_name}", *row.notes]:
            print(f"  {row.name}: {note}")
    print(flush=True)


async def machine() -> dict[str, str]:
    """What the figures were measured on."""
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "processor": processor(),
        "python": platform.python_version(),
        "database": str(await run_sql(MYSQL, "SELECT VERSION()")),
        "redis": str(redis.Redis.from_url(REDIS).info("server")["redis_version"]),
        "load before": f"{os.getloadavg()[0]:.1f}",
    }


def write_report(rows: list[Row], about: dict[str, str], folder: Path) -> None:
    """REPORT.md for readers and report.json for programs."""
    document = {"machine": about, "rows": [row.as_dict() for row in rows]}
    (folder / "report.json").write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", "utf-8")
    lines = [f"# Figures of {about['date']}", ""]
    lines += ["`make bench` wrote this page. [docs/bench.md](../docs/bench.md) says what each row is.", ""]
    lines += [", ".join(f"{name} {value}" for name, value in about.items() if name != "date") + ".", ""]
    lines += ["Everything, with the load, ran on this machine. Only the ratios can be compared between machines.", ""]
    lines += [f"| {' | '.join(HEADER)} |", "|" + "---|" * len(HEADER)]
    lines += [f"| {' | '.join(row.cells())} |" for row in rows]
    lines += ["", "## What belongs to each row", ""]
    lines += [f"- **{row.name}.** Limit: {'; '.join([row.limit_name, *row.notes])}." for row in rows]
    (folder / "REPORT.md").write_text("\n".join(lines) + "\n", "utf-8")


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--seconds", type=float, default=SECONDS, help="of one slice")
    made.add_argument("--pairs", type=int, default=PAIRS, help="slices of each kind")
    return made


def run_alone(rows: Rows, options: argparse.Namespace) -> None:
    """Prints the rows of one benchmark. Exit 1 if the books are wrong."""
    measured = asyncio.run(rows(options))  # type: ignore[arg-type]
    print_table(measured)
    if any(row.is_wrong for row in measured):
        raise SystemExit(1)
