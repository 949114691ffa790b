"""`python -m tests.chaos --minutes 10 --seed 7`: a storm over real processes, then a reckoning."""

import argparse
import asyncio
import shlex
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.report import as_page, as_text
from tests.chaos.storm import Plan, run_storm


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100_000)
    parser.add_argument("--tasks", type=int, default=2000, help="tasks that must have been accepted")
    parser.add_argument("--gap", type=float, default=3.0, help="seconds from one fault to the next, on average")
    parser.add_argument("--report", type=Path, help="a page of Markdown to write")
    parser.add_argument("--keep", type=Path, help="a folder for logs and data, kept afterwards")
    asked = parser.parse_args()
    words = ["--minutes", f"{asked.minutes:g}", "--seed", str(asked.seed), "--tasks", str(asked.tasks)]
    words += ["--gap", f"{asked.gap:g}"]
    command = shlex.join(["python", "-m", "tests.chaos", *words])
    plan = Plan(asked.seed, asked.minutes * 60, asked.tasks, asked.gap, command)
    print(f"seed {asked.seed}: {asked.minutes:g} minutes, at least {asked.tasks} tasks", flush=True)
    if asked.keep:
        asked.keep.mkdir(parents=True)
        storm, story = asyncio.run(run_storm(plan, asked.keep))
    else:
        with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
            storm, story = asyncio.run(run_storm(plan, Path(folder)))
    print(as_text(storm, story))
    if asked.report:
        asked.report.write_text(as_page(storm, story), "utf-8")
    return 1 if storm.differences else 0


sys.exit(main())
