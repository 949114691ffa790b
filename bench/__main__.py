"""All benchmarks: one table, bench/REPORT.md and bench/report.json.

    python -m bench [--seconds 3] [--pairs 6] [--only submit,reads] [--litellm] [--out folder]

Exit 1 if the books were wrong after any of them, or if one was not measured. LiteLLM may be missing.
"""

import asyncio
import traceback
from pathlib import Path

from bench import lists, poll_end, poll_steady, push, reads, relay, submit, worker_rows
from bench.table import Row, Rows, machine, parser, print_table, write_report

BENCHMARKS: dict[str, Rows] = {
    "submit": submit.rows,
    "reads": reads.rows,
    "lists": lists.rows,
    "polls": worker_rows.rows,
    "steady": poll_steady.rows,
    "push": push.rows,
    "ends": poll_end.rows,
    "litellm": relay.rows,
}


async def measure(names: list[str], options: object) -> list[Row]:
    """The rows of the benchmarks, one after the other. One that fails leaves a row with the reason."""
    rows: list[Row] = []
    for name in names:
        try:
            measured = await BENCHMARKS[name](options)  # type: ignore[arg-type]
        except (SystemExit, Exception) as error:
            traceback.print_exc()
            measured = [Row(name, "none", missing=(str(error) or type(error).__name__).splitlines()[0][:200])]
        print_table(measured)
        rows += measured
    return rows


def main() -> None:
    made = parser(__doc__)
    for module in (submit, lists, worker_rows, poll_steady, push, poll_end):
        module.arguments(made)
    made.add_argument("--only", default="", help=f"some of {', '.join(BENCHMARKS)}; by default all but litellm")
    made.add_argument("--litellm", action="store_true", help="also LiteLLM's relay, which is installed first")
    made.add_argument("--out", type=Path, help="folder for REPORT.md and report.json; with --only there is no default")
    options = made.parse_args()
    names = [name for name in options.only.split(",") if name] or [name for name in BENCHMARKS if name != "litellm"]
    if unknown := set(names) - set(BENCHMARKS):
        made.error(f"unknown: {', '.join(sorted(unknown))}")
    if options.litellm and "litellm" not in names:
        names.append("litellm")
    about = asyncio.run(machine())
    rows = asyncio.run(measure(names, options))
    print_table(rows)
    if out := options.out or (None if options.only else Path(__file__).parent):
        write_report(rows, about, out)
    if any(row.is_wrong or row.missing for row in rows if row.name != relay.NAME):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
