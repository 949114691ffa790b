"""The `gateway` command for tests, in each world."""

from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from app.cli.commands import app
from app.errors import GatewayError
from tests.support.worlds import World


@pytest.fixture
def gateway(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Callable[..., Result]:
    """Runs a command against the database of this world. A gateway error becomes exit code 1, as in `main`."""
    monkeypatch.chdir(tmp_path)
    for name, value in world.settings.items():
        monkeypatch.setenv(name.upper(), str(value))
    runner = CliRunner()

    def run(*words: str) -> Result:
        result = runner.invoke(app, list(words))
        if isinstance(result.exception, GatewayError):
            result.exit_code = 1
        return result

    return run
