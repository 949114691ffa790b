"""Prints the result of a benchmark: one aligned line for each figure, and the machine."""

import platform
from datetime import UTC, datetime
from pathlib import Path


def show(title: str, rows: dict[str, str]) -> None:
    """Compare ratios and counts between machines, but rates and times only within this table."""
    width = max(len(name) for name in rows)
    print(f"\n{title}   ({datetime.now(UTC):%Y-%m-%d}, {processor()})")
    for name, value in rows.items():
        print(f"  {name:<{width}}  {value}")
    print(flush=True)


def processor() -> str:
    cores, name = 0, platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cores, name = cores + 1, line.partition(":")[2].strip()
    return f"{cores} × {name}"
