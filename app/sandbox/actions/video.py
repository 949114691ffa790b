"""The video action: blocks unless `sync` is false, one MP4 a job; wants approval and repair where it is asked to."""

from typing import Any

from starlette.responses import JSONResponse, Response

from app.sandbox.actions.action import Action, Arrival, Moment, Order
from app.sandbox.actions.video_input import ANY_LENGTH, FORMS, VideoFields, VideoInput, find_faults, find_strangers
from app.sandbox.bodies import InputError, validate
from app.sandbox.clips import ADAPTIVE, Clip, measure_clip
from app.sandbox.jobs import Job, Words
from app.sandbox.names import VIDEO
from app.sandbox.refusals import fault, guidance

COST_POINTS = {"480p": 120_000, "720p": 200_000, "1080p": 450_000}
"""The sandbox's own prices in platform tokens; SEE2AI only says that calls are counted."""
FAST_SHARE_PERCENT = 80
SECONDS_BY_ITSELF = 5
BAD_REQUEST, UNPROCESSABLE = 400, 422


class Video(Action):
    """One of the two forms: in the seed's, broken rules are 400; in the later one, everything wrong needs repair."""

    name = VIDEO
    model = "see2ai-video"
    field = "state"

    def __init__(self, form: VideoFields) -> None:
        self._form = form
        self.words = Words("running", "running", "success" if form == "seed" else "succeeded")

    async def read(self, arrival: Arrival) -> Order:
        if strangers := find_strangers(self._form, arrival.parsed):
            raise InputError(strangers)
        wanted = validate(FORMS[self._form], arrival.parsed)
        if faults := find_faults(wanted):
            raise InputError(faults, BAD_REQUEST if self._form == "seed" else UNPROCESSABLE)
        resolution = wanted.resolution or "720p"
        return Order(
            prompt=wanted.prompt or "",
            work=_film(wanted, resolution),
            cost_points=COST_POINTS[resolution] * (FAST_SHARE_PERCENT if "fast" in wanted.model_name else 100) // 100,
            blocks=wanted.sync,
            facts={"model": wanted.model_name},
        )

    def refuse(self, error: InputError) -> Response:
        is_unreadable = error.faults[0]["type"] == "json_invalid"
        if self._form == "2026-04" and not is_unreadable:
            return JSONResponse(guidance(error.faults), UNPROCESSABLE)
        if error.code == BAD_REQUEST:
            return JSONResponse({"detail": "; ".join(one["msg"] for one in error.faults)}, BAD_REQUEST)
        return super().refuse(error)

    def result(self, moment: Moment) -> dict[str, Any]:
        progress = {"progress": moment.look.progress} if moment.job.plan.progress else {}
        return {"result_urls": moment.urls} | progress

    def failure(self, job: Job) -> tuple[int, dict[str, Any]]:
        if job.plan.expires_unapproved or job.plan.end_word.lower() != "needs_repair":
            return super().failure(job)
        reason = job.plan.end_reason or "Please change the prompt or the references and submit again."
        told = guidance([fault("value_error", ["body", "prompt"], reason)])
        del told["state"]  # the word stands where the plan wants it
        return UNPROCESSABLE, told | {"error_message": reason}


def _film(wanted: VideoInput, resolution: str) -> Clip:
    ratio = wanted.aspect_ratio or ADAPTIVE
    seconds = SECONDS_BY_ITSELF if wanted.duration in {None, ANY_LENGTH} else wanted.duration or SECONDS_BY_ITSELF
    references = len(wanted.images + wanted.videos + wanted.audios + wanted.frames)
    return Clip(
        text="",
        digest="",
        label=f"{ratio} · {resolution} · {seconds} s" + (f" · {references} ref" if references else ""),
        size=measure_clip(ratio, resolution),
        seconds=seconds,
        has_audio=wanted.generate_audio is not False,
    )
