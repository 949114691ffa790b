"""Which faults happen, how often, and where: drawn for every seed, a few kinds at a time.

With every fault at once a seed would make no progress. With a little of each it would rarely see the same fault
twice in a row. So each kind is on or off for a whole seed ("swarm testing"). Of four seeds in a row, one has a
single kind of fault, often, and one a single place where processes are killed and frozen. They take turns, so every
kind and every place is covered. The other two are swarms.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping
from contextvars import Context, copy_context

from app.failpoints import FAILPOINTS
from tests.simulator.clock import PROCESS, VirtualLoop

# The probability of each kind at each chance, if it is on.
KINDS: dict[str, float] = {
    # processes, at every place where they call the outside
    "process.kill": 0.015,
    "process.freeze": 0.008,
    "process.freeze_long": 0.015,
    "process.stop": 0.004,
    # … and at the gateway's own failpoints, between two lines of its code
    "point.kill": 0.03,
    "point.freeze": 0.05,
    # the answer to a caller
    "api.answer_lost": 0.15,
    # the database
    "db.slow": 0.02,
    "db.hang": 0.004,
    "db.cut": 0.02,
    "db.deadlock": 0.03,
    "db.commit_undone": 0.05,
    "db.commit_unheard": 0.05,
    "db.commit_hangs": 0.03,
    "db.commit_late": 0.03,
    # SEE2AI: any call
    "up.refused": 0.2,
    "up.slow_connect": 0.2,
    "up.slow": 0.2,
    # … a submit
    "up.lost_before": 0.2,
    "up.accept_lost": 0.2,
    "up.accept_hangs": 0.3,
    "up.accept_late": 0.3,
    "up.accept_slow": 0.2,
    "up.submit_401": 0.2,
    "up.submit_429": 0.2,
    "up.submit_500": 0.3,
    "up.submit_504": 0.3,
    "up.submit_400": 0.2,
    "up.submit_302": 0.2,
    "up.submit_garbage": 0.2,
    "up.reused_id": 0.2,
    # … a poll
    "up.poll_lost": 0.2,
    "up.poll_hangs": 0.2,
    "up.poll_401": 0.2,
    "up.poll_404": 0.3,
    "up.poll_429": 0.2,
    "up.poll_500": 0.2,
    "up.poll_html": 0.2,
    "up.poll_other_id": 0.2,
    "up.poll_word": 0.2,
    # … and the jobs themselves
    "job.fails": 0.3,
    "job.needs_repair": 0.2,
    "job.approval": 0.4,
    "job.empty": 0.2,
    "job.endless": 0.2,
    "job.late": 0.2,
    # the download and storage of results
    "egress.fails": 0.4,
    "egress.slow": 0.25,
    "egress.links_expire": 0.5,
    "media.broken": 0.4,
    "store.fails": 0.2,
    "store.slow": 0.25,
    # Redis
    "redis.flushed": 0.3,
    "redis.fails": 0.3,
    "redis.hangs": 0.1,
    "redis.rings_ten_times": 0.3,
}
# Faults that affect everything at a random time, with their probability in a seed.
EVENTS: dict[str, float] = {
    "event.all_killed": 0.15,
    "event.database_away": 0.2,
    "event.key_refused": 0.15,
    "event.poison": 0.08,
    "event.upstream_away": 0.1,
}
# How likely a crash is at each place. Most reads are queries of idle workers, where a crash shows little. Faults show
# most often just after a COMMIT and just before and after a call.
DANGER = {
    "db.read": 0.1,
    "db.begin": 0.4,
    "db.write": 0.4,
    "db.committed": 4.0,
    "redis.ring": 0.4,
    "redis.publish": 0.4,
}
USUAL_DANGER = 2.5
OF_PLACES = dict.fromkeys(("process.kill", "process.freeze_long", "point.kill", "point.freeze"), 0.8)
POINT_DANGER = {
    "submit.before_intent": 2.0,
    "submit.after_intent": 4.0,
    "submit.after_answer": 2.0,
    "rehost.after_upload": 2.0,
    "finish.before_commit": 2.0,
}
USUAL_POINT_DANGER = 0.4
# The places where a process calls the outside.
DOORS = (
    "api.answer",
    "db.begin",
    "db.commit",
    "db.committed",
    "db.read",
    "db.write",
    "egress.get",
    "redis.publish",
    "redis.ring",
    "store.get",
    "store.put",
    "store.stored",
    "up.accepted",
    "up.answer",
    "up.connect",
    "up.sent",
)
# Faults that are needed to reach a kind or a place. A link expires only while its result cannot be stored.
NEEDS = {"egress.links_expire": {"store.fails": 0.8, "store.slow": 0.3}, "up.sent": {"up.accept_late": 0.9}}
STEP_POINTS = FAILPOINTS - {"webhook.after_send"}  # the simulation has no webhooks
PLACES = (*DOORS, *sorted(STEP_POINTS))
FAULTS = (*KINDS, *EVENTS)
ROUND = 4
ALL_TURNS = ROUND * max(len(FAULTS), len(PLACES))
"""In this number of consecutive seeds every kind and every place has its turn."""
MAX_AT_A_PLACE = 2  # kills, and the same number of freezes; with more a seed would make no progress
SHARES = (0.0, 0.15, 0.3, 0.3, 0.3, 0.4, 0.4, 0.5)
"""The share of the kinds that are on in a swarm. One of eight swarms has no fault."""


class Weather:
    """The faults of one seed. With a `storm` only those, at its rates. `is_fair` turns all off."""

    def __init__(self, seed: int, send: Callable[[str], None], storm: Mapping[str, float]) -> None:
        self.rng = random.Random(f"weather {seed}")
        self.send = send
        self.context: Context = copy_context()
        self.context.run(PROCESS.set, None)
        self.is_fair = False
        self.is_over = False  # events while the coroutines are closed at the end are not traced
        self.hits: Counter[str] = Counter()
        self.bugs: list[str] = []
        self.rates: dict[str, float] = {}
        self.events: set[str] = set()
        self.place = ""  # the only place where processes are killed and frozen
        state, which = divmod(seed, ROUND)
        self.is_turn = not storm and which < 2  # a seed of one kind, or of one place
        if storm:
            self.rates = {kind: rate for kind, rate in storm.items() if kind in KINDS}
            self.place = next((place for place in PLACES if place in storm), "")
            self._draw_events(storm)
        elif which == 0:
            self._give_a_turn(FAULTS[state % len(FAULTS)])
        elif which == 1:
            self.place = PLACES[state % len(PLACES)]
            danger = 0.2 if self.place == "db.read" else 1.0
            self.rates = {kind: rate * danger for kind, rate in OF_PLACES.items()} | NEEDS.get(self.place, {})
        else:
            self._swarm(self.rng.choice(SHARES))
        self.on_kill: Callable[[], None] = lambda: None
        self.on_freeze: Callable[[float], None] = lambda _: None
        self.on_stop: Callable[[], None] = lambda: None

    def _give_a_turn(self, kind: str) -> None:
        if kind in EVENTS:
            self.events = {kind}
        else:
            self.rates = {kind: min(max(4 * KINDS[kind], 0.05), 0.6)} | NEEDS.get(kind, {})

    def _swarm(self, share: float) -> None:
        self.rates = {
            kind: min(rate * 10 ** self.rng.uniform(-0.5, 0.6), 0.9)
            for kind, rate in KINDS.items()
            if self.rng.random() < share
        }
        self._draw_events(EVENTS if share else {})

    def _draw_events(self, chances: Mapping[str, float]) -> None:
        self.events = {event for event in EVENTS if self.rng.random() < chances.get(event, 0.0)}

    def between(self, low: float, high: float) -> float:
        return self.rng.uniform(low, high)

    def note(self, kind: str) -> None:
        """Counts an event."""
        self.hits[kind] += 1
        self.send(kind)

    def strikes(self, kind: str, danger: float = 1.0) -> bool:
        if self.is_fair or kind not in self.rates or self.rng.random() >= self.rates[kind] * danger:
            return False
        self.note(kind)
        return True

    async def cross(self, door: str, seconds: float = 0.008) -> None:
        """A process calls the outside at this place: it takes some time, and may be killed or frozen here."""
        process = PROCESS.get()
        if process is not None:
            self._endanger(door)
            if process.is_dead or process.is_frozen:
                await asyncio.sleep(0)  # waits here for ever, or until it continues
        await asyncio.sleep(self.rng.random() * seconds)

    def reach(self, point: str) -> None:
        """A process reaches a failpoint of the gateway. Here it can be frozen in the middle of a step."""
        self.hits[f"point {point}"] += 1
        process = PROCESS.get()
        if process is None or process.is_dead or process.is_frozen:
            return
        usual = POINT_DANGER.get(point, USUAL_POINT_DANGER)
        if self.strikes("point.kill", self._danger("killed", point, usual)):
            self.hits[f"killed at {point}"] += 1
            self.on_kill()  # until its next place, where a killed process stops, its actions have no effect outside
        elif not loop().is_within_freeze and self.strikes("point.freeze", self._danger("frozen", point, usual)):
            self.hits[f"frozen at {point}"] += 1
            self.on_freeze(self.between(25, 130))
            loop().freeze_here(process)

    def _endanger(self, door: str) -> None:
        usual = DANGER.get(door, USUAL_DANGER)
        if self.strikes("process.kill", self._danger("killed", door, usual)):
            self.hits[f"killed at {door}"] += 1
            self.on_kill()
        elif self.strikes("process.freeze", usual):
            self.on_freeze(self.between(0.5, 15))
        elif self.strikes("process.freeze_long", self._danger("frozen", door, usual)):
            self.hits[f"frozen at {door}"] += 1
            self.on_freeze(self.between(25, 130))
        elif self.strikes("process.stop", usual):
            self.on_stop()

    def _danger(self, what: str, place: str, usual: float) -> float:
        if not self.place:
            return usual
        deaths, freezes = self.hits[f"killed at {place}"], self.hits[f"frozen at {place}"]
        so_far = deaths if what == "killed" else freezes
        # In turns, beginning with a kill: a freeze may last until the faults end.
        is_next = not self.is_turn or (deaths <= freezes) is (what == "killed")
        return float(place == self.place and so_far < MAX_AT_A_PLACE and is_next)


def loop() -> VirtualLoop:
    running = asyncio.get_running_loop()
    assert isinstance(running, VirtualLoop)
    return running
