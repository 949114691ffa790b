"""The simulator must find each removed protection within the given number of seeds."""

import pytest

from tests.simulator.crowd import workers
from tests.simulator.mutants import MUTANTS, hunt

GROUPS = 6


@pytest.mark.full
@pytest.mark.parametrize("group", range(GROUPS))
def test_every_mutant_is_killed(group: int) -> None:
    hunted = range(group, len(MUTANTS), GROUPS)
    with workers() as spread:
        kills = dict(zip([MUTANTS[which].name for which in hunted], spread(hunt, hunted), strict=True))
    for name, kill in kills.items():
        print(f"{name}: {'SURVIVED' if kill is None else f'seed {kill[0]}: {kill[1][:120]}'}")
    assert [name for name, kill in kills.items() if kill is None] == []
