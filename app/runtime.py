"""Opens what a process needs, once, and closes it in order. API, worker and commands use it."""

import contextlib
import resource
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property

import structlog
from arq.connections import ArqRedis

from app.database import Database, open_database
from app.egress import Egress, validate_url
from app.messaging.pubsub import CHANNEL, TaskPubSub
from app.messaging.redis import open_redis
from app.messaging.wakeup import WorkerWakeup
from app.settings import Settings
from app.storage import ObjectStore, open_object_store
from app.upstreams.action import Action
from app.upstreams.breaker import CircuitBreaker
from app.upstreams.protocol import Upstream
from app.upstreams.registry import actions_for, open_upstreams

log = structlog.get_logger()

MAX_FILES = 65_536
MAX_BACKLOG = 2048


def raise_file_limit() -> None:
    """Raises this process's limit of open files as far as it may, and logs it. Connections are files, too."""
    if _file_limit() < _wanted_files():
        with contextlib.suppress(ValueError, OSError):  # macOS has a further limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (_wanted_files(), resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    log.info("file_limit", files=_file_limit(), connections=max_connections())


def _wanted_files() -> int:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)


def _file_limit() -> int:
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MAX_FILES if soft == resource.RLIM_INFINITY else soft


def max_connections() -> int:
    """How many files may be connections of callers. The rest is for the database, uploads and the like."""
    return _file_limit() * 3 // 4


def max_backlog() -> int:
    """How many connections may wait until they are accepted. All of them are accepted at once, before one is replaced.

    So they must fit into the part of the files that is not for connections.
    """
    return max(min(_wanted_files() // 16, MAX_BACKLOG), 16)


@dataclass(frozen=True)
class Runtime:
    """Everything that has a connection. It is passed down; nothing is global."""

    settings: Settings
    database: Database
    redis: ArqRedis
    wakeup: WorkerWakeup
    pubsub: TaskPubSub
    store: ObjectStore
    egress: Egress
    """For results of SEE2AI. Links of callers have their own, so their slow servers delay no result."""
    caller_egress: Egress
    upstreams: Mapping[str, Upstream]
    """The clients by provider: `upstreams[action.provider]`."""
    actions: Mapping[str, Action]
    breakers: Mapping[str, CircuitBreaker]
    """By provider, like the clients."""
    durations: dict[str, float] = field(default_factory=dict)
    """Typical seconds by model, refreshed by `catalog/durations`."""

    @cached_property
    def must_upload_references(self) -> bool:
        """Whether SEE2AI cannot fetch stored files by their URLs, so the worker uploads them to SEE2AI first."""
        if self.settings.see2ai_uploads == "auto":
            return validate_url(self.store.public_url("x")) is not None
        return self.settings.see2ai_uploads == "always"


@asynccontextmanager
async def open_runtime(settings: Settings) -> AsyncIterator[Runtime]:
    """Opens no connection yet: an absent service shows at its first use."""
    raise_file_limit()
    async with AsyncExitStack() as stack:
        database = open_database(settings)
        stack.push_async_callback(database.close)
        redis = open_redis(settings)
        stack.push_async_callback(redis.aclose)
        wakeup = WorkerWakeup(redis, settings.redis_namespace)
        stack.push_async_callback(wakeup.close)
        pubsub = TaskPubSub(redis, settings.redis_name(CHANNEL))
        stack.push_async_callback(pubsub.close)
        egress, caller_egress = Egress(settings.egress_allowed), Egress(settings.egress_allowed)
        stack.push_async_callback(egress.close)
        stack.push_async_callback(caller_egress.close)
        upstreams = open_upstreams(settings)
        for upstream in upstreams.values():
            stack.push_async_callback(upstream.close)
        yield Runtime(
            settings=settings,
            database=database,
            redis=redis,
            wakeup=wakeup,
            pubsub=pubsub,
            store=open_object_store(settings),
            egress=egress,
            caller_egress=caller_egress,
            upstreams=upstreams,
            actions=actions_for(settings),
            breakers={
                provider: CircuitBreaker(provider, database, settings.circuit_max_pause_seconds)
                for provider in upstreams
            },
        )
