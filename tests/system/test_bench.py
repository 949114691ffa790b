"""The benchmarks still run, with tiny sizes and no limits on figures. Their database syncs every commit."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.table import CLEAN, READS_ONLY, Row, run_alone
from tests.chaos.servers import open_database_server, open_redis_server
from tests.support.database_servers import Missing
from tests.support.processes.process import Processes

ROOT = Path(__file__).parents[2]
SHORT = ["--seconds", "0.5", "--pairs", "1"]
FEW = ["--steady-tasks", "300", "--steady-seconds", "3", "--jobs", "3"]
TINY = {
    "bench": [*SHORT, "--users", "5", "--connections", "4", "--rows", "400", "--tasks", "2000", "--ends", "5", *FEW],
    "bench.submit": [*SHORT, "--users", "5", "--connections", "4"],
    "bench.poll": ["--seconds", "1.5", "--pairs", "1", "--tasks", "2000"],
    "bench.memory": ["--seconds", "0.5", "--tasks", "50"],
    "bench.slopes": ["--seconds", "0.3", "--scale", "0.002"],
    "bench.push": ["--ends", "5", "--pairs", "1", "--streams", "2"],
}
ROWS = ("submit", "CPU of a submit", "submit of one user", "submits of two", "GET task", "GET balance")
ROWS += ("list, first page", "list, page 1 ", "list, page ", "polls of one", "polls of 300", "memory of a task")
ROWS += ("end's commit", "job's end")


@pytest.mark.parametrize("module", TINY)
def test_a_benchmark_runs_and_leaves_right_books(module: str, tmp_path: Path) -> None:
    with Processes(tmp_path, {}) as processes:
        try:
            database, redis = open_database_server(processes, tmp_path), open_redis_server(processes)
        except Missing as error:
            pytest.skip(str(error))
        database.start()
        redis.start()
        servers = {
            "TEST_MYSQL_URL": f"mysql+asyncmy://root:@127.0.0.1:{database.port}/",
            "TEST_REDIS_URL": f"redis://127.0.0.1:{redis.port}",
        }
        done = subprocess.run(
            [sys.executable, "-m", module, *TINY[module], *(["--out", str(tmp_path)] if module == "bench" else [])],
            cwd=ROOT,
            env=os.environ | servers,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=1000,
        )
        assert done.returncode == 0, done.stdout
        assert CLEAN in done.stdout
    if module == "bench":
        assert_report_is_whole(tmp_path)


def assert_report_is_whole(folder: Path) -> None:
    """Each row has a figure, a limit and a ratio, and both files have all of them."""
    rows = json.loads((folder / "report.json").read_text("utf-8"))["rows"]
    assert [row["name"].startswith(name) for row, name in zip(rows, ROWS, strict=True)] == [True] * len(ROWS)
    page = (folder / "REPORT.md").read_text("utf-8")
    for row in rows:
        assert row["audit"] in {CLEAN, READS_ONLY}
        assert min(*row["figures"], *row["limits"], row["ratio"]) > 0
        assert f"| {row['name']} | {row['ratio']:.2f} |" in page


def test_a_row_compares_each_figure_with_the_limit_of_the_same_turn() -> None:
    row = Row("a", "b", figures=[10, 30, 10], limits=[20, 30, 40], at_least=0.5)
    assert (row.ratio, row.goal, row.is_met) == (0.5, "≥ 0.5", True)
    row = Row("a", "b", "ms", figures=[10], limits=[3], at_most=3)
    assert (row.goal, row.is_met) == ("≤ 3", False)
    assert row.cells()[3] == "missed"
    row = Row("a", "b", at_least=0.5, missing="it does not install")
    assert (row.is_met, row.cells()[-1]) == (None, "it does not install")


def test_wrong_books_end_a_benchmark_with_an_error() -> None:
    async def rows(_: argparse.Namespace) -> list[Row]:
        return [Row("a", "b", figures=[1], limits=[1], audit="1 violations: I1")]

    with pytest.raises(SystemExit):
        run_alone(rows, argparse.Namespace())
