"""Dockerfile and docker-compose.yml, checked without a container engine."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from app.cli.commands import app
from app.settings import Settings

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
COMPOSE_TEXT = (ROOT / "docker-compose.yml").read_text("utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load(COMPOSE_TEXT)
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if service.get("build")}
SETTINGS = {name.upper() for name in Settings.model_fields}
SECRETS = {"MYSQL_PASSWORD", "JWT_SECRET", "SEE2AI_API_KEY"}


def instructions() -> list[tuple[str, str]]:
    """(instruction, the rest), with continued lines joined and without comments."""
    lines = "\n".join(line for line in DOCKERFILE.splitlines() if not line.startswith("#"))
    joined = lines.replace("\\\n", " ").splitlines()
    return [(first, " ".join(rest.split())) for first, _, rest in (line.partition(" ") for line in joined) if first]


def commands_of_the_cli() -> set[str]:
    return set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


# ------------------------------------------------------------------ Dockerfile


def test_every_stage_uses_a_python_that_the_project_supports() -> None:
    bases = [re.match(r"python:(\d+)\.(\d+)-slim", rest) for first, rest in instructions() if first == "FROM"]
    assert len(bases) == 2
    assert all(base and (int(base[1]), int(base[2])) >= (3, 11) for base in bases)


def test_packages_come_from_the_lock_file_by_hash() -> None:
    installs = [rest for first, rest in instructions() if first == "RUN" and "pip install" in rest]
    assert installs
    assert all("--require-hashes -r requirements.lock" in install for install in installs)


def test_copied_files_exist_and_pass_dockerignore() -> None:
    ignore = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    own = [rest.split() for first, rest in instructions() if first == "COPY" and "--from" not in rest]
    assert {source for *sources, _ in own for source in sources} == {line[1:] for line in ignore if line[:1] == "!"}
    assert all((ROOT / source).exists() for *sources, _ in own for source in sources)
    assert "*" in ignore


def test_it_runs_as_an_unprivileged_user_and_has_a_health_check() -> None:
    last = dict(instructions())
    assert last["USER"] not in {"root", "0"}
    assert "/healthz" in last["HEALTHCHECK"]
    assert shlex.split(last["CMD"].strip("[]").replace(",", " "))[0] == "gateway"


def test_its_environment_has_only_settings_of_the_gateway() -> None:
    named = dict(pair.split("=", 1) for pair in dict(instructions())["ENV"].split())
    ours = {name: value for name, value in named.items() if not name.startswith("PYTHON") and name != "PATH"}
    assert set(ours) <= SETTINGS
    assert ours["ENVIRONMENT"] == "production"
    Settings(_env_file=None, environment="development", **{k.lower(): v for k, v in ours.items() if k != "ENVIRONMENT"})


# ------------------------------------------------------------------ docker-compose.yml


def test_it_has_the_documented_services() -> None:
    assert set(SERVICES) == {"mysql", "redis", "migrate", "api", "worker"}
    assert set(OURS) == {"migrate", "api", "worker"}


@pytest.mark.parametrize("name", OURS)
def test_a_service_runs_a_command_that_exists_with_settings_that_exist(name: str) -> None:
    service = OURS[name]
    assert service["command"][0] == "gateway"
    assert service["command"][1] in commands_of_the_cli()
    assert set(service["environment"]) <= SETTINGS | {"TMPDIR"}
    assert service["environment"]["ENVIRONMENT"] == "production"


def test_no_secret_has_a_default() -> None:
    for name in SECRETS:
        uses = re.findall(r"\$\{" + name + r"([^}]*)\}", COMPOSE_TEXT)
        assert uses
        assert all(use.startswith(":?") for use in uses), name


def test_with_own_secrets_production_starts() -> None:
    given = {
        "MYSQL_PASSWORD": "p" * 20,
        "JWT_SECRET": "j" * 40,
        "SEE2AI_API_KEY": "sk-" + "r" * 30,
        "PUBLIC_URL": "https://api.example.com",
    }
    filled = {name: fill(str(value), given) for name, value in OURS["api"]["environment"].items()}
    settings = Settings(_env_file=None, **{name.lower(): value for name, value in filled.items() if value})
    assert settings.environment == "production"
    assert settings.database_url.endswith(
        f":{'p' * 20}@mysql:3306/{SERVICES['mysql']['environment']['MYSQL_DATABASE']}"
    )
    assert settings.storage_location.removeprefix("file://") in str(OURS["worker"]["volumes"])


def fill(text: str, given: dict[str, str]) -> str:
    """Compose's `${NAME:?…}` and `${NAME:-default}`."""
    return re.sub(r"\$\{(\w+):([?-])([^}]*)\}", lambda m: given.get(m[1]) or ("" if m[2] == "?" else m[3]), text)


def test_services_start_after_their_dependencies() -> None:
    assert OURS["migrate"]["depends_on"]["mysql"]["condition"] == "service_healthy"
    for name in ("api", "worker"):
        assert OURS[name]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"
    for name in ("mysql", "redis"):
        assert SERVICES[name]["healthcheck"]["test"]
    assert OURS["migrate"]["restart"] == "no"


def test_only_the_api_is_reachable_and_only_from_its_own_machine() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert list(published) == ["api"]
    assert published["api"] == ["127.0.0.1:${PORT:-8081}:8081"]
    assert "PORT=8081" in DOCKERFILE
    assert "EXPOSE 8081" in DOCKERFILE


def test_every_named_volume_is_declared() -> None:
    used = {volume.partition(":")[0] for service in SERVICES.values() for volume in service.get("volumes", ())}
    assert used == set(COMPOSE["volumes"])
