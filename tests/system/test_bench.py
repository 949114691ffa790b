"""The benchmarks still run, with tiny sizes and no limits on figures. Their database syncs every commit."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.servers import open_database_server, open_redis_server
from tests.support.database_servers import Missing
from tests.support.processes.process import Processes

ROOT = Path(__file__).parents[2]
TINY = {
    "bench.submit": ["--seconds", "0.3", "--pairs", "1", "--users", "5", "--connections", "4"],
    "bench.poll": ["--seconds", "1.5", "--pairs", "1", "--tasks", "2000"],
    "bench.memory": ["--seconds", "0.5", "--tasks", "50"],
    "bench.push": ["--ends", "5", "--pairs", "1", "--streams", "2"],
}


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
            [sys.executable, "-m", module, *TINY[module]],
            cwd=ROOT,
            env=os.environ | servers,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout
        assert "clean" in done.stdout
