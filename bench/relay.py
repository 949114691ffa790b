"""Our submits beside LiteLLM's image relay: one worker, an upstream on this machine, no database.

    python -m bench.relay [--seconds 3] [--pairs 6] [--users 1000] [--connections 32]

The two do different work. A submit stores the task and its deduction durably and answers before the upstream is asked.
The relay stores nothing and answers when the upstream has, which it does at once here. LiteLLM is installed into
`.cache/litellm`, which takes some minutes the first time.
"""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bench.callers import PROMPT, call, request
from bench.harness import ROOT, Harness, wait_for_port
from bench.paired_runs import in_turns, on_cpu_of
from bench.submit import arguments, open_users, submits
from bench.table import Row, audit, parser, row_of_rates, run_alone
from tests.support.ports import free_port

VENV = ROOT / ".cache" / "litellm"
MASTER_KEY = "sk-bench"
MODEL = "bench-image"
NAME = "submit beside LiteLLM's image relay"
INSTALL_SECONDS = 900
START_SECONDS = 180


class NotInstalledError(Exception):
    """LiteLLM could not be installed or started. The text says why."""


async def rows(options: argparse.Namespace) -> list[Row]:
    try:
        version = await install()
        return [await beside(options, version)]
    except NotInstalledError as error:
        return [Row(NAME, "LiteLLM's image relay", missing=str(error))]


async def beside(options: argparse.Namespace, version: str) -> Row:
    """Slices of our submits and of the relay's requests in turns."""
    limit = f"LiteLLM {version}, one worker, without a database"
    body = json.dumps({"model": MODEL, "prompt": PROMPT, "n": 1, "size": "1024x1024"})
    relayed = [request("POST", "/v1/images/generations", MASTER_KEY, body)]
    async with (
        open_users(options.users) as (harness, settings),
        harness.api() as (pid, port),
        relay(harness) as (relay_pid, relay_port),
        call(harness, port, options.connections, submits(settings, range(1, options.users + 1))) as ours,
        call(harness, relay_port, options.connections, relayed) as theirs,
    ):
        works = on_cpu_of(ours, pid), on_cpu_of(theirs, relay_pid)
        row = row_of_rates(NAME, limit, *await in_turns(options.pairs, options.seconds, *works))
        row.audit = await audit(harness)
    row.notes.append("a submit is stored durably and answered before the upstream is asked; the relay stores nothing")
    return row


async def install() -> str:
    """Installs LiteLLM where it is missing, and returns its version. Raises NotInstalledError."""
    python = str(VENV / "bin" / "python")
    if not (VENV / "bin" / "litellm").exists():
        await run(sys.executable, "-m", "venv", str(VENV))
        await run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "litellm[proxy]")
    return await run(python, "-c", "from importlib.metadata import version; print(version('litellm'))")


async def run(*command: str) -> str:
    child = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        output, errors = await asyncio.wait_for(child.communicate(), INSTALL_SECONDS)
    except TimeoutError:
        child.kill()
        raise NotInstalledError(f"{command[2]} took more than {INSTALL_SECONDS} s") from None
    if child.returncode:
        raise NotInstalledError((errors.decode().strip().splitlines() or ["no reason given"])[-1][:200])
    return output.decode().strip()


@asynccontextmanager
async def relay(harness: Harness) -> AsyncIterator[tuple[int, int]]:
    """LiteLLM's proxy before an upstream on this machine: (its process id, its port). Raises NotInstalledError."""
    port, upstream = free_port(), free_port()
    parameters = {"model": f"openai/{MODEL}", "api_base": f"http://127.0.0.1:{upstream}/v1", "api_key": "sk-upstream"}
    model = {"model_name": MODEL, "litellm_params": parameters, "model_info": {"mode": "image_generation"}}
    config = {"model_list": [model], "general_settings": {"master_key": MASTER_KEY}}
    file = Path(harness.directory, "litellm.yaml")
    file.write_text(json.dumps(config))  # JSON is YAML
    command = [str(VENV / "bin" / "litellm"), "--config", str(file), "--host", "127.0.0.1", "--port", str(port)]
    # Not the harness's variables: LiteLLM would take DATABASE_URL and REDIS_URL for its own.
    variables = {"PATH": os.environ["PATH"], "HOME": str(harness.directory)}
    variables |= {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    apart = Harness(variables, harness.directory)
    log = (harness.directory / "litellm.log").open("wb")
    async with (
        harness.process(sys.executable, "-m", "bench.limits.images", str(upstream)),
        apart.process(*command, "--num_workers", "1", stderr=log.fileno(), stdout=log.fileno()) as child,
    ):
        try:
            await wait_for_port(upstream)
            await wait_for_port(port, START_SECONDS)
        except SystemExit:
            lines = Path(log.name).read_text(errors="replace").strip().splitlines() or ["no output"]
            raise NotInstalledError(f"it did not start: {lines[-1][:200]}") from None
        yield child.pid, port


if __name__ == "__main__":
    _parser = parser(__doc__)
    arguments(_parser)
    run_alone(rows, _parser.parse_args())
