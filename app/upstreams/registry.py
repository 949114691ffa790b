"""The providers of this gateway. A new provider is one package and one line in `PROVIDERS`."""

from collections.abc import Mapping

from app.settings import Settings
from app.upstreams.action import Action
from app.upstreams.protocol import Provider, Upstream
from app.upstreams.see2ai.provider import SEE2AI

PROVIDERS: tuple[Provider, ...] = (SEE2AI,)


def open_upstreams(settings: Settings) -> dict[str, Upstream]:
    """The clients by provider name. The caller closes them."""
    return {provider.name: provider.open(settings) for provider in PROVIDERS}


def actions_for(settings: Settings) -> Mapping[str, Action]:
    """The actions that this gateway sells, by name, in the form that the settings say."""
    return {action.name: action for provider in PROVIDERS for action in provider.actions(settings)}


def known_actions() -> Mapping[str, Action]:
    """Every action that a model may name."""
    return {action.name: action for provider in PROVIDERS for action in provider.known_actions}
