"""The lock files are complete: `pip install --no-deps` from them leaves no requirement unmet, on any supported machine.

The requirements come from the metadata of the installed distributions. If a pin is only for other machines, its own
requirements are unknown.
"""

import functools
import re
import sys
import tomllib
from collections.abc import Callable, Iterable
from importlib.metadata import distribution, distributions
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import Environment, Marker, default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
RUN = (ROOT / "requirements.lock").read_text("utf-8")
DEV = (ROOT / "requirements-dev.lock").read_text("utf-8")
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
OURSELVES = PYPROJECT["project"]["name"]

FOR_RUN = [*PYPROJECT["project"]["dependencies"], *PYPROJECT["build-system"]["requires"]]
FOR_DEV = [*FOR_RUN, *PYPROJECT["dependency-groups"]["dev"]]

PYTHONS = ["3.11.2", "3.11.14", "3.12.0", "3.13.0", "3.14.0"]  # async-timeout is needed before 3.11.3 only
MACHINES = [("linux", "Linux", "x86_64"), ("linux", "Linux", "aarch64"), ("darwin", "Darwin", "arm64")]

HERE = default_environment()


def environment(python: str, machine: tuple[str, str, str]) -> Environment:
    return {
        **HERE,
        "python_version": python.rpartition(".")[0],
        "python_full_version": python,
        "implementation_version": python,
        "sys_platform": machine[0],
        "platform_system": machine[1],
        "platform_machine": machine[2],
    }


OTHERS = [
    pytest.param(environment(python, machine), id=f"{python}-{machine[0]}-{machine[2]}")
    for python, machine in product(PYTHONS, MACHINES)
]


def is_active(marker: Marker | None, where: Environment, extra: str = "") -> bool:
    return marker is None or marker.evaluate({**where, "extra": extra})


@functools.cache
def parsed(text: str) -> Requirement:
    return Requirement(text)


def pins_of(lock: str, where: Environment) -> dict[str, list[str]]:
    """Name to versions, of the pins that apply in that environment. More than one version is a mistake."""
    found: dict[str, list[str]] = {}
    for line in lock.splitlines():
        if line and line[0] not in " #":
            pin = parsed(line.removesuffix("\\"))
            if is_active(pin.marker, where):
                (specifier,) = pin.specifier
                assert specifier.operator == "=="
                found.setdefault(canonicalize_name(pin.name), []).append(specifier.version)
    return found


INSTALLED = {canonicalize_name(one.name): [one.version] for one in distributions()}


@functools.cache
def requirements_of(name: str, version: str) -> list[str]:
    """The requirements by its metadata. Empty if the package, or this version of it, is not installed."""
    return list(distribution(name).requires or []) if version in INSTALLED.get(name, []) else []


Requires = Callable[[str, str], Iterable[str]]


def unmet(
    wanted: Iterable[str], pins: dict[str, list[str]], where: Environment, requires: Requires = requirements_of
) -> set[str]:
    """All requirements that the pins do not meet in that environment, also those of required packages."""
    found: set[str] = set()
    seen: set[tuple[str, str]] = set()
    waiting = [("pyproject.toml", "", text) for text in wanted]
    while waiting:
        by, extra, text = waiting.pop()
        requirement = parsed(text)
        if not is_active(requirement.marker, where, extra):
            continue
        name = canonicalize_name(requirement.name)
        versions = pins.get(name, [])
        if len(versions) != 1 or not requirement.specifier.contains(versions[0], prereleases=True):
            found.add(f"{by} requires {requirement.name}{requirement.specifier}, pinned: {versions}")
            continue
        for key in {(name, ""), *((name, extra) for extra in requirement.extras)} - seen:
            seen.add(key)
            waiting += [(name, key[1], text) for text in requires(name, versions[0])]
    return found


# ------------------------------------------------------------------ this environment


def test_the_installed_packages_are_those_of_the_lock() -> None:
    """Another version, or a package without a pin: `make clean install` makes the environment anew."""
    ours = {name: versions for name, versions in INSTALLED.items() if name not in {"pip", OURSELVES}}
    assert ours == pins_of(DEV, HERE)


def test_the_installed_packages_meet_every_requirement() -> None:
    assert unmet(FOR_DEV, INSTALLED, HERE) == set()


def test_the_project_is_installed_with_the_dependencies_it_declares() -> None:
    declared = [Requirement(text) for text in PYPROJECT["project"]["dependencies"]]
    assert {Requirement(text) for text in distribution(OURSELVES).requires or []} == set(declared)


# ------------------------------------------------------------------ the lock files on every machine


@pytest.mark.parametrize("where", [pytest.param(HERE, id="here"), *OTHERS])
def test_the_pins_meet_every_requirement(where: Environment) -> None:
    assert unmet(FOR_RUN, pins_of(RUN, where), where) == set()
    assert unmet(FOR_DEV, pins_of(DEV, where), where) == set()


@pytest.mark.parametrize("where", [pytest.param(HERE, id="here"), *OTHERS])
def test_both_lock_files_pin_the_same_versions(where: Environment) -> None:
    assert pins_of(RUN, where).items() <= pins_of(DEV, where).items()


def test_the_pythons_of_this_test_are_those_the_project_supports() -> None:
    assert Requirement(f"python{PYPROJECT['project']['requires-python']}").specifier.contains(PYTHONS[0])
    assert f"{sys.version_info.major}.{sys.version_info.minor}" in {python.rpartition(".")[0] for python in PYTHONS}


@pytest.mark.parametrize("lock", [RUN, DEV], ids=["run", "dev"])
def test_every_pin_has_hashes_and_no_line_names_an_index(lock: str) -> None:
    pins = re.split(r"^(?=\S)", lock, flags=re.MULTILINE)[1:]
    assert len(pins) > 50
    assert all("--hash=sha256:" in pin for pin in pins)
    assert not re.search(r"://|^--|@ ", lock, flags=re.MULTILINE)


def test_the_build_group_is_what_the_build_system_requires() -> None:
    """`make lock` can only read groups."""
    assert PYPROJECT["dependency-groups"]["build"] == PYPROJECT["build-system"]["requires"]


# ------------------------------------------------------------------ the check itself


def without(lock: str, name: str) -> str:
    doctored, count = re.subn(rf"^{name}==[^\n]*\n(?: [^\n]*\n)*", "", lock, flags=re.MULTILINE)
    assert count
    return doctored


def pinned_at(lock: str, name: str, version: str) -> str:
    doctored, count = re.subn(rf"^{name}==\S+", f"{name}=={version}", lock, flags=re.MULTILINE)
    assert count
    return doctored


@pytest.mark.parametrize(
    ("doctored", "complaint"),
    [
        (without(DEV, "ruff"), "pyproject.toml requires ruff"),
        (without(DEV, "starlette"), "fastapi requires starlette"),
        (without(DEV, "greenlet"), "sqlalchemy requires greenlet"),  # sqlalchemy[asyncio]
        (without(DEV, "cryptography"), "python-jose requires cryptography"),  # python-jose[cryptography]
        (without(DEV, "uvloop"), "uvicorn requires uvloop"),  # uvicorn[standard], with a marker
        (pinned_at(DEV, "fastapi", "0.1"), "pyproject.toml requires fastapi>=0.165, pinned: ['0.1']"),
        (pinned_at(DEV, "execnet", "1.0"), "pytest-xdist requires execnet>="),
        (DEV + "rich==99.0 ; python_version > '3'\n", "pyproject.toml requires rich>=14, pinned: ["),
    ],
)
def test_an_incomplete_lock_file_is_found(doctored: str, complaint: str) -> None:
    found = unmet(FOR_DEV, pins_of(doctored, HERE), HERE)
    assert any(said.startswith(complaint) for said in found), found


def test_a_pin_missing_only_on_other_machines_is_found() -> None:
    where = environment("3.11.2", MACHINES[0])
    assert any("async-timeout" in said for said in unmet(FOR_DEV, pins_of(without(DEV, "async-timeout"), where), where))


def test_requirements_of_an_extra_count_only_if_the_extra_is_requested() -> None:
    metadata = {"a": ["b[x]"], "b": ["c ; extra == 'x'", "d ; extra == 'y'", "e ; python_version < '3'"], "c": ["b"]}
    pins = {"a": ["1"], "b": ["1"]}
    assert unmet(["a"], pins, HERE, lambda name, _: metadata[name]) == {"b requires c, pinned: []"}
    assert unmet(["b"], pins, HERE, lambda name, _: metadata[name]) == set()
