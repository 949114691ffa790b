"""The running sandbox as fixtures, and the two schemas of SEE2AI's published schema."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sandbox_server import Server, serve  # pytest puts a test's own folder on the path

SEEDS = Path(__file__).parents[1] / "seeds"


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with serve() as running:
        yield running


@pytest.fixture
def sandbox(server: Server) -> Iterator[Server]:
    """The shared server, without rules or journal from an earlier test."""
    server.client.delete("/journal")
    server.control()
    yield server
    server.control()


@pytest.fixture(scope="session")
def output_schema() -> dict[str, Any]:
    return json.loads((SEEDS / "fast_image_output.json").read_text("utf-8"))


@pytest.fixture(scope="session")
def input_schema() -> dict[str, Any]:
    return json.loads((SEEDS / "fast_image_input.json").read_text("utf-8"))


@pytest.fixture
def serving() -> Callable[..., contextlib.AbstractContextManager[Server]]:
    """Starts a sandbox of one's own, e.g. with another event loop."""
    return serve
