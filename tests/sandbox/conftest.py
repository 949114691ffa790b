"""The running sandbox as fixtures, in both forms of the video action, and SEE2AI's published schemas."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.sandbox_server import Server, serve  # pytest puts a test's own folder on the path

SEEDS = Path(__file__).parents[1] / "seeds"
SCHEMAS = Path(__file__).with_name("schemas")


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with serve() as running:
        yield running


@pytest.fixture
def sandbox(server: Server) -> Iterator[Server]:
    """The shared server, without rules or a request log from an earlier test."""
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


@pytest.fixture(scope="session")
def outputs() -> dict[str, dict[str, Any]]:
    """The published output schemas of the other actions: `uniworld`, `video` and `normalize`."""
    files = SCHEMAS.glob("*_output.json")
    return {file.name.removesuffix("_output.json"): json.loads(file.read_text("utf-8")) for file in files}


@pytest.fixture(scope="session")
def later_server() -> Iterator[Server]:
    with serve(video_fields="2026-04") as running:
        yield running


@pytest.fixture
def later(later_server: Server) -> Server:
    """A sandbox whose video action takes the form of April 2026."""
    later_server.client.delete("/journal")
    later_server.control()
    return later_server


@pytest.fixture
def serving() -> Callable[..., contextlib.AbstractContextManager[Server]]:
    """Starts a separate sandbox, for example with another event loop."""
    return serve
