"""The actions of SEE2AI that the gateway sells, one file each. A model names its action."""

from collections.abc import Mapping

from app.upstreams.action import Action
from app.upstreams.see2ai.actions.fast_image import FAST_IMAGE
from app.upstreams.see2ai.actions.normalize import NORMALIZE
from app.upstreams.see2ai.actions.uniworld import UNIWORLD
from app.upstreams.see2ai.actions.video import VIDEO_2026_04, VIDEO_SEED


def actions_of(video_fields: str) -> Mapping[str, Action]:
    """By name; video in the form that SEE2AI_VIDEO_FIELDS says."""
    video = VIDEO_SEED if video_fields == "seed" else VIDEO_2026_04
    return {action.name: action for action in (FAST_IMAGE, UNIWORLD, video, NORMALIZE)}


ACTIONS = actions_of("2026-04")
"""The wider form, with which models are checked."""

__all__ = ["ACTIONS", "NORMALIZE", "Action", "actions_of"]
