"""How xdist deals tests out: one by one, but files whose tests share an expensive fixture as a whole.

xdist 3.8 has `--dist loadgroup` for this. Under pytest 9.2 it does nothing: it sets a name that pytest no longer reads.
"""

from xdist.scheduler import LoadScopeScheduling

WHOLE_FILES = frozenset(
    {
        "tests/system/test_guide.py",  # runs all examples at once, for all its tests
        "tests/system/processes/test_database_away.py",
        "tests/system/processes/test_redis_away.py",
        "tests/system/processes/test_push_processes.py",
    }
)


class Scheduler(LoadScopeScheduling):  # type: ignore[misc]
    """What has one scope runs on one worker, in order."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return file if file in WHOLE_FILES else nodeid
