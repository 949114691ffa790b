"""One version everywhere, and a licence for each needed package. The tests of the wheel are in tests/system."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import httpx
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from typer.testing import CliRunner

from app.cli.commands import app

ROOT = Path(__file__).parents[1]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
NOTICES = (ROOT / "THIRD_PARTY_NOTICES.md").read_text("utf-8")
PINS = re.findall(r"^[^\s#]+==\S+", (ROOT / "requirements.lock").read_text("utf-8"), re.MULTILINE)
PACKAGES = {canonicalize_name(Requirement(pin).name) for pin in PINS}
OTHER_SPELLINGS = {"Apache 2": "Apache-2.0", "Apache 2.0": "Apache-2.0", "ISC License": "ISC", "MIT License": "MIT"}


def listed() -> dict[str, str]:
    """Package to licence, by the table of THIRD_PARTY_NOTICES.md."""
    section = NOTICES.partition("\n## Packages that the gateway needs\n")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| ([a-z0-9-]+) \| ([^|]+) \|$", section.partition("|---|---|")[2], re.MULTILINE))


def stated_licence(package: str) -> str | None:
    """The licence by the metadata of the installed package. None if it is not installed or states no short name."""
    try:
        metadata = distribution(package).metadata
    except PackageNotFoundError:
        return None
    stated = metadata.get("License-Expression") or metadata.get("License") or ""
    is_short_name = stated != "" and "\n" not in stated
    return OTHER_SPELLINGS.get(stated, stated) if is_short_name else None


def test_the_notices_list_every_package_of_the_lock_file_and_no_other() -> None:
    assert len(PACKAGES) > 50
    assert set(listed()) == PACKAGES


def test_a_listed_licence_is_the_one_that_the_package_states() -> None:
    stated = {package: licence for package in PACKAGES if (licence := stated_licence(package))}
    assert len(stated) > len(PACKAGES) * 0.8
    assert {package: listed()[package] for package in stated} == stated


def test_the_command_prints_the_version_of_pyproject() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"gateway {VERSION}\n")


@pytest.mark.anyio
@pytest.mark.worlds("embedded")
async def test_the_openapi_document_carries_the_version_of_pyproject(api: httpx.AsyncClient) -> None:
    assert (await api.get("/openapi.json")).json()["info"]["version"] == VERSION


def test_a_copy_that_is_not_installed_reads_its_version_from_pyproject() -> None:
    """As in the container image. Without site-packages there is no metadata to read."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import app; print(app.read_version())"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, VERSION), done.stderr


def test_the_changelog_has_a_section_for_this_version() -> None:
    assert re.search(rf"^## \[{re.escape(VERSION)}\] - ", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
