"""`python -m tests.chaos --minutes 10 --seed 7`: random faults on real processes, then a check of all records."""

import argparse
import asyncio
import shlex
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.report import as_page, as_text
from tests.chaos.storm import Plan, run_storm
from tests.support.run import begin_run, end_run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100_000)
    parser.add_argument("--tasks", type=int, default=2000, help="tasks that must have been accepted")
    parser.add_argument("--gap", type=float, default=3.0, help="seconds from one fault to the next, on average")
    parser.add_argument("--report", type=Path, help="a page of Markdown to write")
    parser.add_argument("--keep", type=Path, help="a folder for logs and data, kept afterwards")
    requested = parser.parse_args()
    words = ["--minutes", f"{requested.minutes:g}", "--seed", str(requested.seed), "--tasks", str(requested.tasks)]
    words += ["--gap", f"{requested.gap:g}"]
    command = shlex.join(["python", "-m", "tests.chaos", *words])
    plan = Plan(requested.seed, requested.minutes * 60, requested.tasks, requested.gap, command)
    print(f"seed {requested.seed}: {requested.minutes:g} minutes, at least {requested.tasks} tasks", flush=True)
    begin_run(full_size=True)
    try:
        if requested.keep:
            requested.keep.mkdir(parents=True)
            storm, story = asyncio.run(run_storm(plan, requested.keep))
        else:
            with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
                storm, story = asyncio.run(run_storm(plan, Path(folder)))
    finally:
        end_run()
    print(as_text(storm, story))
    if requested.report:
        requested.report.write_text(as_page(storm, story), "utf-8")
    return 1 if storm.differences else 0


sys.exit(main())
