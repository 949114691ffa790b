"""SEE2AI as a provider of the registry. The client, which loads an HTTP library, is imported when it is opened."""

from collections.abc import Iterable

from app.settings import Settings
from app.upstreams.action import Action
from app.upstreams.protocol import Provider, Upstream
from app.upstreams.see2ai.actions import ACTIONS, actions_of


def _open(settings: Settings) -> Upstream:
    from app.upstreams.see2ai.client import See2aiClient

    return See2aiClient(settings)


def _actions(settings: Settings) -> Iterable[Action]:
    return actions_of(settings.see2ai_video_fields).values()


SEE2AI = Provider("see2ai", _open, _actions, tuple(ACTIONS.values()))
