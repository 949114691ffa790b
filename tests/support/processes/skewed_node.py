"""`gateway …` on a node with a wrong clock: `SKEW_SECONDS` is added to the time of day.

Monotonic clocks are unchanged, as on a real machine with a wrong clock.
"""

import datetime as datetime_module
import os
import time
from typing import Any

SKEW_SECONDS = float(os.environ.get("SKEW_SECONDS", "0"))
_time, _time_ns, _localtime = time.time, time.time_ns, time.localtime
_Real = datetime_module.datetime


class _IsReal(type):
    """Every real datetime counts as an instance of Skewed, because drivers written in C create real ones."""

    def __instancecheck__(cls, one: object) -> bool:
        return isinstance(one, _Real)

    def __subclasscheck__(cls, kind: type) -> bool:
        return issubclass(kind, _Real)


class Skewed(_Real, metaclass=_IsReal):
    """`now` is wrong. Everything else is unchanged and returns real datetimes."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return _Real(*args, **kwargs)

    @classmethod
    def now(cls, tz: datetime_module.tzinfo | None = None) -> Any:
        return _Real.now(tz) + datetime_module.timedelta(seconds=SKEW_SECONDS)

    @classmethod
    def utcnow(cls) -> Any:
        return cls.now(datetime_module.UTC).replace(tzinfo=None)

    @classmethod
    def today(cls) -> Any:
        return cls.now()


if __name__ == "__main__":
    # This import gives libraries that compare types exactly the real datetime. Our modules get the skewed one.
    import pydantic
    import sqlalchemy.dialects.mysql
    import sqlalchemy.ext.asyncio

    assert pydantic
    assert sqlalchemy
    time.time = lambda: _time() + SKEW_SECONDS
    time.time_ns = lambda: _time_ns() + int(SKEW_SECONDS * 1e9)
    time.localtime = lambda seconds=None: _localtime(time.time() if seconds is None else seconds)
    datetime_module.datetime = Skewed  # type: ignore[misc]
    from app.cli import main

    main()
