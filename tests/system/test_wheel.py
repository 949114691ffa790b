"""The wheel holds the whole gateway and runs without the source tree; the wheel of the Python client is complete, too.

Each wheel is built from a source archive, as `python -m build` does, with the setuptools of the lock file. The
installed gateway uses the packages of this environment. So nothing is downloaded.
"""

import re
import shutil
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app import read_version
from tests.support.ports import free_port
from tests.support.processes.process import Processes

ROOT = Path(__file__).parents[2]
PACKAGES = ("app", "worker", "migrations")
SOURCES = (*PACKAGES, "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "THIRD_PARTY_NOTICES.md", "CHANGELOG.md")
LOCK = "requirements.lock"
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
BUILD_SDIST = "from setuptools.build_meta import build_sdist; build_sdist('dist')"


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    with Processes(tmp_path / "run", {}) as started:
        yield started


def run(processes: Processes, *command: str, cwd: Path | None = None) -> str:
    """Returns the output of the command. Its exit code must be 0."""
    process = processes.start(*command, cwd=cwd)
    assert process.ends(300) == 0, process.log()
    return process.log()


def build(processes: Processes, source: Path) -> Path:
    """The wheel, built from the source archive and not from the tree. This shows that the archive is complete."""
    dist = source / "dist"
    run(processes, sys.executable, "-c", BUILD_SDIST, cwd=source)
    (archive,) = dist.glob("*.tar.gz")
    options = ("--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(dist))
    run(processes, *PIP, "wheel", *options, str(archive))
    (wheel,) = dist.glob("*.whl")
    return wheel


@pytest.fixture
def wheel(processes: Processes, tmp_path: Path) -> Path:
    """Built from a copy of the tree: a `build/` folder from an earlier build would add modules that are gone."""
    source = tmp_path / "source"
    source.mkdir()
    for name in (*SOURCES, LOCK):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source)
    return build(processes, source)


@pytest.fixture
def installed(processes: Processes, wheel: Path, tmp_path: Path) -> Path:
    """The `bin` folder of a new environment that holds this wheel. It finds all other packages in our environment."""
    environment = tmp_path / "environment"
    run(processes, sys.executable, "-m", "venv", "--without-pip", str(environment))
    python = environment / "bin" / "python"
    run(processes, *PIP, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel))
    (site_packages,) = environment.glob("lib/python*/site-packages")
    ours = [path for path in sys.path if Path(path).name == "site-packages"]
    (site_packages / "requirements.pth").write_text("\n".join(ours))
    return python.parent


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_every_file_of_the_packages_and_the_licence(wheel: Path) -> None:
    """Also migrations, the font, its licence, the template of a migration and the marks of typed packages."""
    source = wheel.parents[1]
    files = {path for package in PACKAGES for path in (source / package).rglob("*") if path.is_file()}
    names = names_in(wheel)
    info = next(name.partition("/")[0] for name in names if name.endswith(".dist-info/METADATA"))
    assert {path.relative_to(source).as_posix() for path in files} == {
        name for name in names if not name.startswith(info)
    }
    assert {"app/py.typed", "worker/py.typed", "migrations/script.py.mako"} <= names
    assert {f"{info}/licenses/LICENSE", f"{info}/licenses/THIRD_PARTY_NOTICES.md"} <= names


def test_the_installed_wheel_runs_the_gateway(processes: Processes, installed: Path, tmp_path: Path) -> None:
    """Help, version, migrations, and a picture: the sandbox draws it with the font."""
    gateway = str(installed / "gateway")
    assert str(tmp_path / "environment") in run(
        processes, str(installed / "python"), "-c", "import app; print(app.__file__)"
    )
    assert "migrate" in run(processes, gateway, "--help")
    assert run(processes, gateway, "--version") == f"gateway {read_version()}\n"
    run(processes, gateway, "migrate")
    assert (processes.directory / "var" / "gateway.db").stat().st_size > 0

    port = free_port()
    up = processes.start(gateway, "up", port=port).answers(f"http://127.0.0.1:{port}/healthz")
    (key,) = set(re.findall(r"sk-[\w-]{20,}", up.log()))
    api = {"base_url": f"http://127.0.0.1:{port}", "headers": {"X-API-Key": key}, "timeout": 90, "trust_env": False}
    with httpx.Client(**api) as client:
        assert client.get("/healthz").status_code == 200
        body = {"modelName": "sc_soraimg_text_1x1", "prompt": "一只可爱的柴犬"}
        task = client.post("/user/ai/tasks/submit", json=body).json()["data"]
        ended = client.get(f"/user/ai/tasks/{task['taskNo']}", params={"wait": 60}).json()["data"]
        assert ended["status"] == "completed", ended
    assert up.terminate() == 0


def test_the_wheel_of_the_python_client_holds_its_types_and_its_licence(processes: Processes, tmp_path: Path) -> None:
    source = tmp_path / "client"
    shutil.copytree(ROOT / "clients" / "python", source, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    names = names_in(build(processes, source))
    assert {"gateway_client/__init__.py", "gateway_client/shapes.py", "gateway_client/py.typed"} <= names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
