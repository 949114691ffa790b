"""The four actions that produce something; the upload, which only stores files, is in routes/uploads.py."""

from app.sandbox.actions.action import Action
from app.sandbox.actions.fast_image import FastImage
from app.sandbox.actions.normalize import Normalize
from app.sandbox.actions.uniworld import Uniworld
from app.sandbox.actions.video import Video
from app.sandbox.actions.video_input import VideoFields

__all__ = ["VideoFields", "make_actions"]


def make_actions(video_fields: VideoFields) -> dict[str, Action]:
    """Every action by its name, the video in the form asked for."""
    actions: tuple[Action, ...] = (FastImage(), Uniworld(), Video(video_fields), Normalize())
    return {action.name: action for action in actions}
