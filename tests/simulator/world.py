"""Simulates one seed: processes, callers and faults; then the faults end, the tasks end, and the result is judged."""

import asyncio
import gc
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from types import MappingProxyType
from typing import Any

from app.errors import GatewayError, Unavailable
from app.points import ledger
from app.runtime import Runtime
from app.tasks import cancel, submit
from tests.simulator.clock import PROCESS, Process, Stuck, VirtualLoop
from tests.simulator.database import Database
from tests.simulator.doubles import Cloud
from tests.simulator.judge import judge
from tests.simulator.machines import Machines
from tests.simulator.requests import HOSTS, MODELS, NORMALIZE_MODEL, settings_of, submission_of
from tests.simulator.stage import fresh_database, in_place
from tests.simulator.upstream import Upstream
from tests.simulator.weather import Weather

PATIENT_CLIENT_SECONDS = 40.0
POLL_SECONDS = 5.0


@dataclass
class Outcome:
    """The result of a seed. Without violations it passed. `digest` shows whether two runs were the same."""

    seed: int
    violations: list[str]
    hits: Counter[str]
    tasks: int = 0
    seconds: float = 0.0
    digest: str = ""
    story: list[str] = field(default_factory=list)


class World:
    def __init__(self, seed: int, trace: bool, without: str, storm: Mapping[str, float]) -> None:
        self.story: list[str] = []
        self._is_traced = trace
        self.seed = seed
        self.weather = weather = Weather(seed, self.send, storm)
        self.rng = random.Random(f"world {seed}")
        pick = self.rng.choice
        self.settings = settings_of(
            pick([20, 30]), pick([60, 150]), pick([60, 120]), 100 if weather.is_turn else pick([100, 100, 2])
        )
        self.database = Database(fresh_database(without), weather, self.settings.lease_seconds)
        self.upstream = Upstream(weather, self.stands)
        self.cloud = Cloud(weather)
        self.requests: dict[str, int] = {}
        self.references: dict[str, str] = {}  # link of a reference to normalize -> prompt of its task
        self.acknowledged: dict[str, str] = {}
        self.cancelled: set[str] = set()
        self.grants: dict[str, tuple[int, int, bool]] = {}
        self.bugs = weather.bugs
        self._requests: list[tuple[Process, asyncio.Task[Any]]] = []
        self.machines = Machines(
            self.settings,
            self.database,
            weather,
            self.send,
            spares_polls=self.rng.random() < 0.8,
            has_jobs=self.rng.random() < 0.15,
            slots=pick([None, None, 1, 2]),
        )

    def send(self, line: str) -> None:
        if self._is_traced and not self.weather.is_over:
            process = PROCESS.get()
            self.story.append(f"{asyncio.get_running_loop().time():9.3f}  {process or '-'!s:<8} {line}")

    def stands(self, send_request: str) -> tuple[str, str] | None:
        """The committed step and status of the task with this prompt or reference."""
        prompt = self.references.get(send_request, send_request)
        rows = self.database.poll("SELECT step, status FROM tasks WHERE prompt = ?", prompt)
        return (rows[0][0], rows[0][1]) if rows else None

    def run(self) -> Outcome:
        loop = VirtualLoop()
        asyncio.set_event_loop(loop)
        outcome = Outcome(self.seed, [], self.weather.hits, story=self.story)
        try:
            with in_place(self.weather, self.database, self.upstream, self.cloud, self.machines):
                random.seed(self.seed)
                try:
                    loop.run_until_complete(self._live(outcome))
                except Stuck as error:
                    outcome.violations.append(f"I9: {error}")
                loop.steps = 0  # a run that was stuck must be closed as well
                loop.run_until_complete(self._close_coroutines(loop))
        finally:
            loop.close()
            asyncio.set_event_loop(None)
            self.database.close()
        return outcome

    async def _live(self, outcome: Outcome) -> None:
        rng, loop = self.rng, asyncio.get_running_loop()
        self.weather.is_fair = True
        self.machines.start("api")
        for number in range(rng.choice([1, 2, 2, 3])):
            self.machines.start(f"w{number + 1}")
        await asyncio.sleep(1)
        for user, points in ((1, 1000), (2, rng.choice([40, 90]))):
            await self._grant(user, points)
        self.weather.is_fair = False
        callers = [asyncio.create_task(self._caller(number)) for number in range(self._count_callers())]
        if rng.random() < 0.5:  # points that expire during the run
            callers.append(asyncio.create_task(self._grant(rng.choice([1, 2]), 40, rng.uniform(10, 150))))
        self._plan_events()
        ends_at = loop.time() + (120 if self.weather.is_turn else rng.choice([40, 120]))
        while loop.time() < ends_at and not (self._all_ended() and all(one.done() for one in callers)):
            await asyncio.sleep(POLL_SECONDS)
        self._end_faults()
        await asyncio.wait(callers)
        await asyncio.sleep(POLL_SECONDS)
        settings = self.settings
        patience = settings.task_deadline_seconds + settings.hosting_deadline_seconds + 5 * settings.lease_seconds + 120
        last = loop.time() + patience
        while loop.time() < last and not (self._all_ended() and self._is_calm()):
            await asyncio.sleep(POLL_SECONDS)
        outcome.seconds = loop.time()
        self.send("judged")
        outcome.violations += await judge(self)
        outcome.tasks = len(self.database.poll("SELECT id FROM tasks"))
        rows = self.database.poll("SELECT task_no, status, error_code, version, completed_at FROM tasks ORDER BY id")
        outcome.digest = f"{rows} {sorted(self.weather.hits.items())} {loop.steps}"  # type: ignore[attr-defined]

    # ------------------------------------------------------------------ callers

    def _count_callers(self) -> int:
        return len(MODELS) + 2 if self.weather.is_turn else self.rng.randint(2, 6)

    async def _caller(self, number: int) -> None:
        """Submits once, or again with the same key until it has an answer. May cancel the task later."""
        rng = random.Random(f"caller {self.seed} {number}")
        user, model, host = rng.choice([1, 1, 2]), rng.choice(MODELS), rng.choice(HOSTS)
        if self.weather.is_turn:  # every model and host, with enough points
            user, model, host = 1, MODELS[number % len(MODELS)], HOSTS[number // 2 % len(HOSTS)]
        key = f"key-{number}" if rng.random() < 0.6 else None
        key_id, end_user = self._spender(number, user)
        await asyncio.sleep(rng.choice([rng.uniform(0, 20), 5.0]))  # some of them in the same moment
        for attempt in range(6 if key else 2):
            name = f"{number}" if key else f"{number}.{attempt}"
            requested = replace(submission_of(model, name, key, host), end_user=end_user)
            self.requests[requested.prompt] = user
            if model == NORMALIZE_MODEL:
                self.references[str(requested.image_url)] = requested.prompt
            answer = await self._request(
                "api", lambda runtime, a=requested: submit.submit_task(runtime, user, a, key_id=key_id)
            )
            if isinstance(answer, submit.SubmitResult):
                self.acknowledged[requested.prompt] = answer.row["task_no"]
                if answer.is_replay:
                    self.weather.note("caller told of an earlier submit")
                if rng.random() < 0.25:
                    await asyncio.sleep(rng.choice([0.0, 1.0, 10.0, 40.0]) * rng.random())
                    await self._cancel(user, answer.row["task_no"])
                return
            if isinstance(answer, GatewayError) and not isinstance(answer, Unavailable):
                self.weather.note(f"caller refused {type(answer).__name__}")
                return
            await asyncio.sleep(rng.uniform(0.1, 5))

    def _spender(self, number: int, user: int) -> tuple[int | None, str | None]:
        """The API key and the end user of a caller, if any. Where everything has its turn, no caps are used."""
        rng = random.Random(f"key {self.seed} {number}")
        keys: list[int | None] = [None, 4] if self.weather.is_turn else [None, *{1: [1, 1, 3, 4], 2: [2, 2]}[user]]
        return rng.choice(keys), rng.choice([None, "alice", "bob"])

    async def _cancel(self, user: int, task_no: str) -> None:
        answer = await self._request("api", lambda runtime: cancel.cancel_task(runtime, user, task_no))
        if isinstance(answer, dict):
            self.cancelled.add(task_no)
            self.weather.note("caller cancelled")
        elif answer is not None:
            self.weather.note(f"caller not cancelled {type(answer).__name__}")

    async def _grant(self, user: int, points: int, lives_seconds: float | None = None) -> None:
        """A top-up by reference, repeated until it has an answer."""
        expires = None if lives_seconds is None else self.database.now() + timedelta(seconds=lives_seconds)
        ref = f"ref-{len(self.grants)}"
        self.grants[ref] = (user, points, False)
        answer: Any = None
        for _ in range(20):
            answer = await self._request(
                "api",
                lambda runtime: ledger.grant(runtime.database, user_id=user, points=points, ref=ref, expires=expires),
            )
            if isinstance(answer, tuple):
                self.grants[ref] = (user, points, True)
                return
            await asyncio.sleep(1)

    async def _request(self, name: str, call: Callable[[Runtime], Awaitable[Any]]) -> Any:
        """What a caller gets: the answer, a GatewayError, or None if the process is gone or does not answer."""
        process, runtime = self.machines.living.get(name), self.machines.runtimes.get(name)
        if process is None or runtime is None:
            return None

        async def handle() -> Any:
            try:
                answer = await call(runtime)
            except GatewayError as error:
                answer = error
            await self.weather.cross("api.answer")
            return None if self.weather.strikes("api.answer_lost") else answer

        request = process.spawn(handle())
        self._requests.append((process, request))
        await asyncio.wait([request], timeout=PATIENT_CLIENT_SECONDS)
        if not request.done():
            self.weather.note("caller unanswered")
            return None
        if request.exception() is not None and not self.database.is_over:
            self.bugs.append(f"a caller's request raised {request.exception()!r}")
            return None
        return request.result()

    # ------------------------------------------------------------------ events, and the end

    def _plan_events(self) -> None:
        weather, loop = self.weather, asyncio.get_running_loop()

        def later(seconds: float, action: Callable[[], None]) -> None:
            loop.call_later(seconds, action, context=weather.context)

        def begin(event: str, holder: Any, name: str) -> None:
            if not weather.is_fair:
                weather.note(event)
                setattr(holder, name, True)

        def window(event: str, holder: Any, name: str, max_length: float) -> None:
            if event in weather.events:
                begins = weather.between(0, 20)
                later(begins, lambda: begin(event, holder, name))
                later(begins + weather.between(1, max_length), lambda: setattr(holder, name, False))

        window("event.database_away", self.database, "is_away", 45)
        window("event.upstream_away", self.upstream, "is_away", 60)
        window("event.key_refused", self.upstream, "refuses_key", 60)
        if "event.all_killed" in weather.events:
            later(weather.between(1, 20), self._kill_all)
        if "event.poison" in weather.events:
            weather.note("event.poison")
            self.upstream.poison = "ask 0"

    def _kill_all(self) -> None:
        if not self.weather.is_fair:
            self.weather.note("event.all_killed")
            for process in list(self.machines.living.values()):
                self.machines.kill(process)

    def _end_faults(self) -> None:
        """Ends all faults. Frozen processes continue, killed ones are started again."""
        self.send("the faults end")
        self.weather.is_fair = True
        self.database.is_away = self.upstream.is_away = self.upstream.refuses_key = False
        for process in self.machines.all:
            self.machines.thaw(process, process.freezes)

    def _all_ended(self) -> bool:
        return not self.database.poll("SELECT 1 FROM tasks WHERE step <> 'done' LIMIT 1")

    def _is_calm(self) -> bool:
        """No task and no request runs any more, so processes that were frozen have done their last write."""
        is_served = all(request.done() or process.is_dead for process, request in self._requests)
        return is_served and self.machines.are_calm()

    async def _close_coroutines(self, loop: VirtualLoop) -> None:
        """Closes every coroutine, also of killed processes, with all effects blocked. The judge ignores it."""
        self.weather.is_fair = self.weather.is_over = self.database.is_over = True
        for _ in range(200):
            for process in self.machines.all:
                loop.thaw(process)
            left = [task for task in asyncio.all_tasks(loop) if task is not asyncio.current_task()]
            if not left:
                return
            for task in left:
                task.cancel()
            await asyncio.sleep(1)
        self.bugs.append(f"cannot be ended: {left[:3]}")


def simulate(
    seed: int, *, trace: bool = False, without: str = "", storm: Mapping[str, float] = MappingProxyType({})
) -> Outcome:
    """Runs one seed from its first submit to its result."""
    world = World(seed, trace, without, storm)
    gc.disable()  # no coroutine of a killed process may be finalized while its seed runs
    try:
        outcome = world.run()
    except Exception as error:
        raise RuntimeError(f"the simulator itself broke on seed {seed}") from error
    finally:
        gc.enable()
    outcome.violations += [f"bug: {bug}" for bug in dict.fromkeys(world.bugs)]
    return outcome
