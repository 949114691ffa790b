"""The caps of an API key and of its end users, and the counters that they bound.

Days and months are local (`TIMEZONE`). A day is text, `2026-11-28`, so that days compare as text and begin with their
month.
"""

from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo

from app.errors import KeyBudgetExceeded, TooManyTasks

MONTH_LENGTH = len("2026-11")
KEY, END_USER = "密钥", "终端用户"


@dataclass(frozen=True, slots=True)
class Caps:
    """The most points and running tasks. None: no cap."""

    daily: int | None = None
    monthly: int | None = None
    total: int | None = None
    max_tasks: int | None = None


def local_day(moment: datetime, zone: ZoneInfo) -> str:
    return moment.astimezone(zone).date().isoformat()


@dataclass(slots=True)
class Counter:
    """The counters of a key's budget, or of one end user. `today` is of the day `day`, `month` of the month of `day`.

    `day` never goes back: a task that was created before midnight and is stored after the first task of the new day
    counts for the new day.
    """

    owner: str
    """Whose counters they are, for the text of a refusal."""
    caps: Caps
    day: str = ""
    today: int = 0
    month: int = 0
    total: int = 0
    running: int = 0

    def check(self, day: str, cost: int) -> None:
        """Raises KeyBudgetExceeded or TooManyTasks if one more task of this cost exceeds a cap."""
        today = self.today if day <= self.day else 0
        month = self.month if day[:MONTH_LENGTH] <= self.day[:MONTH_LENGTH] else 0
        for name, cap, spent in (
            ("每日", self.caps.daily, today),
            ("每月", self.caps.monthly, month),
            ("总", self.caps.total, self.total),
        ):
            if cost and cap is not None and spent + cost > cap:
                text = f"积分不足: 超出{self.owner}的{name}额度 {cap}，已用 {spent}，本次需要 {cost}"
                raise KeyBudgetExceeded(text)
        if self.caps.max_tasks is not None and self.running >= self.caps.max_tasks:
            raise TooManyTasks(self.caps.max_tasks, self.owner)

    def add(self, day: str, cost: int) -> None:
        """Counts one more running task, and its cost. The day rolls over if the task is of a later one."""
        if day > self.day:
            self.today = 0
            if day[:MONTH_LENGTH] != self.day[:MONTH_LENGTH]:
                self.month = 0
            self.day = day
        self.today += cost
        self.month += cost
        self.total += cost
        self.running += 1
