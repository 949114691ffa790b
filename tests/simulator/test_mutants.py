"""The simulator must find each removed protection within the given number of seeds."""

import pytest

from tests.simulator.crowd import workers
from tests.simulator.mutants import MUTANTS, hunt


@pytest.mark.full
def test_every_mutant_is_killed() -> None:
    with workers() as spread:
        kills = dict(zip([mutant.name for mutant in MUTANTS], spread(hunt, range(len(MUTANTS))), strict=True))
    for name, kill in kills.items():
        print(f"{name}: {'SURVIVED' if kill is None else f'seed {kill[0]}: {kill[1][:120]}'}")
    assert [name for name, kill in kills.items() if kill is None] == []
