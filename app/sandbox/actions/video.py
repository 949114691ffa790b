"""The video action: blocks unless `sync` is false, one MP4 a job. A rule makes it ask for approval or repair."""

from typing import Any

from starlette.responses import JSONResponse, Response

from app.sandbox.action_names import VIDEO
from app.sandbox.actions.action import Action, JobSnapshot, JobSpec, SubmitRequest
from app.sandbox.actions.video_input import (
    ANY_DURATION,
    FORMS,
    VideoFields,
    VideoInput,
    find_fields_of_other_form,
    find_rule_errors,
)
from app.sandbox.error_responses import field_error, repair_guidance
from app.sandbox.jobs.job import Job, StateNames
from app.sandbox.media.videos import ADAPTIVE, VideoSpec, video_size
from app.sandbox.parsing import InputError, validate

COST_POINTS = {"480p": 120_000, "720p": 200_000, "1080p": 450_000}
"""The sandbox's own prices in platform tokens; SEE2AI only says that calls are counted."""
FAST_MODEL_PERCENT = 80
DEFAULT_SECONDS = 5
BAD_REQUEST, UNPROCESSABLE = 400, 422


class Video(Action):
    """One of the two forms: in the seed's, broken rules are 400; in the later one, everything wrong needs repair."""

    name = VIDEO
    model = "see2ai-video"
    state_field = "state"

    def __init__(self, form: VideoFields) -> None:
        self._form = form
        self.state_names = StateNames("running", "running", "success" if form == "seed" else "succeeded")

    async def read(self, submit: SubmitRequest) -> JobSpec:
        if errors := find_fields_of_other_form(self._form, submit.parsed):
            raise InputError(errors)
        fields = validate(FORMS[self._form], submit.parsed)
        if errors := find_rule_errors(fields):
            raise InputError(errors, BAD_REQUEST if self._form == "seed" else UNPROCESSABLE)
        resolution = fields.resolution or "720p"
        percent = FAST_MODEL_PERCENT if "fast" in fields.model_name else 100
        return JobSpec(
            prompt=fields.prompt or "",
            media=_video_spec(fields, resolution),
            cost_points=COST_POINTS[resolution] * percent // 100,
            blocks=fields.sync,
            extra_fields={"model": fields.model_name},
        )

    def refuse(self, error: InputError) -> Response:
        is_invalid_json = error.errors[0]["type"] == "json_invalid"
        if self._form == "2026-04" and not is_invalid_json:
            return JSONResponse(repair_guidance(error.errors), UNPROCESSABLE)
        if error.code == BAD_REQUEST:
            return JSONResponse({"detail": "; ".join(one["msg"] for one in error.errors)}, BAD_REQUEST)
        return super().refuse(error)

    def result(self, snapshot: JobSnapshot) -> dict[str, Any]:
        progress = {"progress": snapshot.status.progress} if snapshot.job.scenario.progress else {}
        return {"result_urls": snapshot.urls} | progress

    def failure(self, job: Job) -> tuple[int, dict[str, Any]]:
        if job.scenario.expires_unapproved or job.scenario.end_state != "needs_repair":
            return super().failure(job)
        reason = job.scenario.text or "Please change the prompt or the references and submit again."
        guidance = repair_guidance([field_error("value_error", ["body", "prompt"], reason)])
        del guidance["state"]  # the scenario decides which field carries the state
        return UNPROCESSABLE, guidance | {"error_message": reason}


def _video_spec(fields: VideoInput, resolution: str) -> VideoSpec:
    ratio = fields.aspect_ratio or ADAPTIVE
    seconds = DEFAULT_SECONDS if fields.duration in {None, ANY_DURATION} else fields.duration or DEFAULT_SECONDS
    references = len(fields.images + fields.videos + fields.audios + fields.frames)
    return VideoSpec(
        text="",
        digest="",
        label=f"{ratio} · {resolution} · {seconds} s" + (f" · {references} ref" if references else ""),
        size=video_size(ratio, resolution),
        seconds=seconds,
        has_audio=fields.generate_audio is not False,
    )
