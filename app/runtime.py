"""The one composition root: what a process needs, opened once and closed in order. API, worker, CLI, tests use it."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property

from arq.connections import ArqRedis

from app.database import Database, open_database
from app.egress import Egress, validate_url
from app.messaging.pubsub import TaskPubSub
from app.messaging.redis import open_redis
from app.messaging.wakeup import WorkerWakeup
from app.settings import Settings
from app.storage import ObjectStore, open_object_store
from app.upstreams.breaker import CircuitBreakers
from app.upstreams.see2ai.actions import Action, actions_of
from app.upstreams.see2ai.client import See2aiClient


@dataclass(frozen=True)
class Runtime:
    """Everything with a connection behind it. Passed down; nothing is global."""

    settings: Settings
    database: Database
    redis: ArqRedis
    wakeup: WorkerWakeup
    pubsub: TaskPubSub
    store: ObjectStore
    egress: Egress
    see2ai: See2aiClient
    actions: Mapping[str, Action]
    breakers: CircuitBreakers
    durations: dict[str, float] = field(default_factory=dict)  # seconds by model, kept by tasks/durations

    @cached_property
    def must_upload_references(self) -> bool:
        """Whether SEE2AI cannot fetch our stored files by their links, so that they must be uploaded to it first."""
        if self.settings.see2ai_uploads == "auto":
            return validate_url(self.store.public_url("x")) is not None
        return self.settings.see2ai_uploads == "always"


@asynccontextmanager
async def open_runtime(settings: Settings) -> AsyncIterator[Runtime]:
    """Dials nothing: a service that is away shows when it is first needed."""
    async with AsyncExitStack() as opened:
        database = open_database(settings)
        opened.push_async_callback(database.close)
        redis = open_redis(settings)
        opened.push_async_callback(redis.aclose)
        wakeup = WorkerWakeup(redis)
        opened.push_async_callback(wakeup.close)
        pubsub = TaskPubSub(redis)
        opened.push_async_callback(pubsub.close)
        egress = Egress(settings.egress_allowed)
        opened.push_async_callback(egress.close)
        see2ai = See2aiClient(settings)
        opened.push_async_callback(see2ai.close)
        actions = actions_of(settings.see2ai_video_fields)
        yield Runtime(
            settings=settings,
            database=database,
            redis=redis,
            wakeup=wakeup,
            pubsub=pubsub,
            store=open_object_store(settings),
            egress=egress,
            see2ai=see2ai,
            actions=actions,
            breakers=CircuitBreakers(
                settings.circuit_max_pause_seconds, {action.provider for action in actions.values()}
            ),
        )
