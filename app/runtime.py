"""The one composition root: what a process needs, opened once and closed in order. API, worker, CLI, tests use it."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property

from arq.connections import ArqRedis

from app.database import Sessions, open_database
from app.egress import Egress, check_url_form
from app.notices import Notices
from app.queue import Bell, open_redis
from app.see2ai.actions import Action, actions_of
from app.see2ai.circuit import Circuits
from app.see2ai.client import See2ai
from app.settings import Settings
from app.storage import ObjectStore, open_object_store


@dataclass(frozen=True)
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
    actions: Mapping[str, Action]
    circuits: Circuits
    durations: dict[str, float] = field(default_factory=dict)  # seconds by model, kept by tasks/durations

    @cached_property
    def hands_over(self) -> bool:
        """Whether SEE2AI cannot fetch our stored files by their links, so that they must be uploaded to it first."""
        if self.settings.see2ai_uploads == "auto":
            return check_url_form(self.store.public_url("x")) is not None
        return self.settings.see2ai_uploads == "always"


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
        actions = actions_of(settings.see2ai_video_fields)
        yield Runtime(
            settings=settings,
            sessions=sessions,
            redis=redis,
            bell=bell,
            notices=notices,
            store=open_object_store(settings),
            egress=egress,
            see2ai=see2ai,
            actions=actions,
            circuits=Circuits(settings.circuit_max_pause_seconds, {action.provider for action in actions.values()}),
        )
