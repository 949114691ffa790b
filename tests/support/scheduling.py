"""How xdist distributes tests to its workers: those of tests/system by file, the others one by one.

A file of tests/system starts processes and mostly waits for them. Its tests share these processes. The files are
spread over the run, so that some workers wait while others compute.

xdist 3.8 has `--dist loadgroup` for such groups. Under pytest 9.2 it does nothing: it sets a name that pytest no longer
reads.
"""

from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

SYSTEM = "tests/system/"
SPREAD = 0.6
"""The last file of tests/system begins after this part of the other tests."""


class Scheduler(LoadScopeScheduling):  # type: ignore[misc]
    """The tests of one scope run on one worker. Scopes begin in the order of `spread`."""

    def __init__(self, config: pytest.Config, log: Any) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        return nodeid.partition("::")[0] if nodeid.startswith(SYSTEM) else nodeid


def is_system(item: pytest.Item) -> bool:
    return item.nodeid.startswith(SYSTEM)


def spread(items: list[pytest.Item]) -> list[pytest.Item]:
    """The order in which they begin: the largest files of tests/system first, with the other tests between them."""
    files: dict[Path, list[pytest.Item]] = {}
    for item in filter(is_system, items):
        files.setdefault(item.path, []).append(item)
    others = [item for item in items if not is_system(item)]
    distance = int(len(others) * SPREAD / max(1, len(files)))
    ordered: list[pytest.Item] = []
    for place, file in enumerate(sorted(files.values(), key=len, reverse=True)):
        ordered += [*file, *others[place * distance : (place + 1) * distance]]
    return ordered + others[len(files) * distance :]
