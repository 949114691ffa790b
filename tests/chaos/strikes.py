"""Runs a schedule of faults. Each fault runs in its own thread; those on one target run one after the other."""

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import redis

from tests.chaos.fleet import Fleet, Post
from tests.chaos.servers import Server
from tests.chaos.weather import Strike, rules

AT_ONCE = 16


@dataclass
class World:
    """The targets of the faults."""

    fleet: Fleet
    database: Server
    redis: Server
    storage: Server
    upstream: Server
    control: httpx.Client

    def set_trouble(self, *extra: dict[str, object], storming: bool = True) -> None:
        """Sets the sandbox's rules, with `extra` first."""
        self.control.post("/control", json=[*extra, *(rules() if storming else [])]).raise_for_status()


class Striker:
    """Runs in threads until its schedule is done. Then `struck` counts the faults that took effect."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._locks: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()
        self.struck: Counter[str] = Counter()
        self.failures: list[str] = []
        self.is_over = threading.Event()

    def run(self, schedule: list[Strike]) -> None:
        began = time.monotonic()
        futures: list[Future[None]] = []
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for strike in schedule:
                if self.is_over.wait(max(began + strike.at_seconds - time.monotonic(), 0)):
                    break
                futures.append(pool.submit(self._strike, strike))
        for future in futures:
            if error := future.exception():
                self.failures.append(f"the storm itself: {error!r}")

    def _strike(self, strike: Strike) -> None:
        target, _, _ = strike.fault.partition(":")
        name = target
        if target in {"worker", "api"}:
            name = self._post(strike).name
        with self._lock(name):
            self._action(strike)()
        with self._guard:
            self.struck[strike.fault] += 1

    def _lock(self, name: str) -> threading.Lock:
        with self._guard:
            return self._locks.setdefault(name, threading.Lock())

    def _post(self, strike: Strike) -> Post:
        posts = self._world.fleet.workers if strike.fault.startswith("worker") else self._world.fleet.apis
        return posts[strike.place % len(posts)]

    def _action(self, strike: Strike) -> Callable[[], None]:
        world, lasting = self._world, strike.lasting_seconds
        match strike.fault.split(": "):
            case ["worker" | "api", "kill -9"]:
                return self._post(strike).kill
            case ["worker" | "api", "SIGTERM"]:
                return self._post(strike).terminate
            case ["worker" | "api", _]:
                return lambda: self._post(strike).freeze(lasting)
            case ["redis", "flushed"]:
                return self._flush
            case ["database", "restarted"]:
                return lambda: _restart(world.database)
            case ["all of ours", _]:
                return self._kill_all
            case ["see2ai", "purse empty"]:
                return lambda: self._empty_balance(lasting)
            case [target, "frozen"]:
                server = {"redis": world.redis, "database": world.database, "see2ai": world.upstream}[target]
                return lambda: _freeze(server, lasting)
            case [target, _]:
                server = {"redis": world.redis, "database": world.database, "storage": world.storage}[target]
                pause = 0.0 if server is world.database else lasting
                return lambda: _kill_and_start(server, pause)
        raise AssertionError(strike.fault)

    def _flush(self) -> None:
        with contextlib.suppress(redis.RedisError), redis.Redis(port=self._world.redis.port, socket_timeout=2) as one:
            one.flushall()

    def _kill_all(self) -> None:
        """Kills processes, database and Redis at once. Their supervisors restart them."""
        world = self._world
        with self._lock("database"), self._lock("redis"):
            for post in world.fleet.posts:
                post.kill()
            world.database.kill()
            world.redis.kill()
            world.redis.start()
            world.database.start()

    def _empty_balance(self, seconds: float) -> None:
        self._world.set_trouble({"balance": "empty"})
        time.sleep(seconds)
        self._world.set_trouble()


def _restart(server: Server) -> None:
    server.stop()
    server.start()


def _kill_and_start(server: Server, pause: float) -> None:
    server.kill()
    time.sleep(pause)
    server.start()


def _freeze(server: Server, seconds: float) -> None:
    server.freeze()
    try:
        time.sleep(seconds)
    finally:
        server.thaw()
