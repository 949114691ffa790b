"""The one composition root: what a process needs, opened once and closed in order. API, worker, CLI, tests use it."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from arq.connections import ArqRedis

from app.database import Sessions, open_database
from app.egress import Egress
from app.notices import Notices
from app.queue import Bell, open_redis
from app.see2ai.circuit import Circuit
from app.see2ai.client import See2ai
from app.settings import Settings
from app.storage import ObjectStore, open_object_store


@dataclass(frozen=True, slots=True)
class Runtime:
    """Everything with a connection behind it. Passed down; nothing is global."""

    settings: Settings
    sessions: Sessions
    redis: ArqRedis
    bell: Bell
    notices: Notices
    store: ObjectStore
    egress: Egress
    see2ai: See2ai
    circuit: Circuit


@asynccontextmanager
async def open_runtime(settings: Settings) -> AsyncIterator[Runtime]:
    """Dials nothing: a service that is away shows when it is first needed."""
    async with AsyncExitStack() as opened:
        sessions = open_database(settings)
        opened.push_async_callback(sessions.close)
        redis = open_redis(settings)
        opened.push_async_callback(redis.aclose)
        bell = Bell(redis)
        opened.push_async_callback(bell.close)
        notices = Notices(redis)
        opened.push_async_callback(notices.close)
        egress = Egress(settings.egress_allowed)
        opened.push_async_callback(egress.close)
        see2ai = See2ai(settings)
        opened.push_async_callback(see2ai.close)
        yield Runtime(
            settings=settings,
            sessions=sessions,
            redis=redis,
            bell=bell,
            notices=notices,
            store=open_object_store(settings),
            egress=egress,
            see2ai=see2ai,
            circuit=Circuit(settings.circuit_max_pause_seconds),
        )
