"""Which rules can change anything at an action. A directive that never can is refused, so no mistake stays unseen."""

from app.sandbox.actions.action import Action
from app.sandbox.media.render import MEDIA_TYPES, MediaSpec
from app.sandbox.rules.rule import FaultRule, JobRule, Rule

NEEDS_STATUS = ("state", "progress", "approval_seconds")


def unusable_reason(rule: Rule, action: Action, media: MediaSpec) -> str:
    """Why the rule can never apply to a job of this action; empty where it can."""
    if isinstance(rule, FaultRule):
        return _fault_reason(rule, action)
    return _job_reason(rule, action, media) if isinstance(rule, JobRule) else ""


def _fault_reason(rule: FaultRule, action: Action) -> str:
    places = ["submit", "poll", "result"] if action.has_status_path else ["submit", "result"]
    if not rule.places & set(places):
        return f"a rule for {', '.join(sorted(rule.places))} never applies here; this action has {', '.join(places)}"
    if rule.fault in {"no-task-id", "reuse-task-id"} and not action.has_status_path:
        return f"{rule.fault} needs an action that gives its jobs an id"
    return ""


def _job_reason(rule: JobRule, action: Action, media: MediaSpec) -> str:
    given = rule.scenario
    if "image_field" in given and not action.has_image_fields:
        return "image_field needs an action with more than one field for its result: UniWorld"
    if "size_bytes" in given and MEDIA_TYPES[media.output_format] != "video/mp4":
        return "size_bytes needs a video: only videos can be padded"
    if "result_count" in given and not action.has_result_list:
        return "result_count needs an action that lists its results: fast image or video"
    unused = [key for key in NEEDS_STATUS if key in given and not action.has_status_path]
    return f"{unused[0]} needs an action with a status to poll" if unused else ""
