"""SEE2AI's actions the gateway sells, one file each. A model row names its action; everything else follows from it."""

from app.see2ai.actions.action import Action
from app.see2ai.actions.fast_image import FAST_IMAGE

ACTIONS: dict[str, Action] = {action.name: action for action in (FAST_IMAGE,)}

__all__ = ["ACTIONS", "Action"]
