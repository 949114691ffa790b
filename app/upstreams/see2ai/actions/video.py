"""`see2ai_video_generation_v1`: videos from text, from a first and last frame, or from references.

SEE2AI renamed its fields for reference images on 2026-04-26. SEE2AI_VIDEO_FIELDS says which form it speaks; only this
file knows both. `sync` is always false: with its default the call would take minutes.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from app.errors import InvalidParameter
from app.upstreams.action import (
    IMAGE_URL,
    Action,
    ActionInput,
    CallerParams,
    UpstreamRequest,
    as_urls,
    require_reference_images,
)

MAX_PROMPT_LENGTH = 20_000  # the gateway's bound: SEE2AI states none
MAX_IMAGES = 9
MAX_VIDEOS = 3
MAX_AUDIO_FILES = 3
MAX_INPUTS = 12
MAX_RESULTS = 16
MODEL_IDS = {"standard": "doubao-seedance-2-0-260128", "fast": "doubao-seedance-2-0-fast-260128"}

Duration = Literal[-1, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]
SeedResolution = Literal["480p", "720p"]
Resolution = Literal["480p", "720p", "1080p"]
Ratio = Literal["adaptive", "16:9", "9:16", "1:1", "21:9", "4:3", "3:4"]
VideoUrls = Annotated[list[str], Field(max_length=MAX_VIDEOS)]
AudioUrls = Annotated[list[str], Field(max_length=MAX_AUDIO_FILES)]


class TextVideoParams(CallerParams):
    """Params of a video, as a caller writes them. `duration` is in seconds; −1 lets SEE2AI choose."""

    version: Annotated[Literal["standard", "fast"], Field(description="standard 画质优先；fast 速度优先")] = "standard"
    duration: Annotated[Duration, Field(description="时长（秒），-1 为自动")] = 5
    resolution: Annotated[Resolution, Field(description="分辨率")] = "720p"
    aspect_ratio: Annotated[Ratio, Field(description="宽高比；adaptive 为自适应")] = "adaptive"
    video_urls: Annotated[VideoUrls, Field(default_factory=list, description="参考视频链接，最多 3 段")]
    audio_urls: Annotated[
        AudioUrls, Field(default_factory=list, description="参考音频链接，最多 3 段，须有参考图或参考视频")
    ]
    watermark: Annotated[bool, Field(description="添加水印")] = False
    generate_audio: Annotated[bool, Field(description="生成同步音频")] = True
    enable_web_search: Annotated[bool, Field(description="联网搜索增强")] = False
    force_asset_upload: Annotated[bool, Field(description="强制素材上传到素材库，显著变慢")] = False


class ImageVideoParams(TextVideoParams):
    """Params that images add: `imageUrl` is the first frame, or a reference if `imageRole` says so."""

    image_role: Annotated[
        Literal["first_frame", "reference"], Field(description="imageUrl 的用途: first_frame 首帧；reference 参考图")
    ] = "first_frame"
    last_frame_url: Annotated[str | None, Field(description="尾帧图片链接，须同时有首帧")] = None
    face_image_url: Annotated[str | None, Field(description="含真人脸的参考图链接")] = None


class VideoParams2026(ImageVideoParams):
    """Hints of the form of 2026-04: null lets SEE2AI detect faces itself."""

    first_frame_has_face: Annotated[bool | None, Field(description="首帧含真人脸；不传为自动识别")] = None
    last_frame_has_face: Annotated[bool | None, Field(description="尾帧含真人脸；不传为自动识别")] = None


class SeedTextVideoParams(TextVideoParams):
    resolution: Annotated[SeedResolution, Field(description="分辨率")] = "720p"


class SeedImageVideoParams(ImageVideoParams):
    resolution: Annotated[SeedResolution, Field(description="分辨率")] = "720p"


class VideoRequest(UpstreamRequest):
    """The fields that both forms of `VideoGenerationInput` share, and the rules over several fields."""

    model_name: Literal["doubao-seedance-2-0-260128", "doubao-seedance-2-0-fast-260128"]
    prompt: Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_LENGTH)]
    first_frame_url: str | None = None
    last_frame_url: str | None = None
    video_url: str | None = None
    video_urls: VideoUrls | None = None
    audio_url: str | None = None
    audio_urls: AudioUrls | None = None
    duration: Duration
    resolution: Resolution
    aspect_ratio: Ratio
    watermark: bool
    generate_audio: bool
    enable_web_search: bool
    force_asset_upload: bool
    sync: Literal[False] = False

    def references(self) -> list[str]:
        """The reference images; each form has fields of its own for them."""
        return []

    @model_validator(mode="after")
    def check_combination(self) -> "VideoRequest":
        videos = _all(self.video_url, self.video_urls)
        audio = _all(self.audio_url, self.audio_urls)
        frames = _all(self.first_frame_url, [self.last_frame_url] if self.last_frame_url else [])
        images = [*frames, *self.references()]
        if self.last_frame_url and not self.first_frame_url:
            raise InvalidParameter("params.lastFrameUrl", "须同时提供首帧 imageUrl（imageRole 为 first_frame）")
        if frames:
            for there, named in ((self.references(), "faceImageUrl"), (videos, "videoUrls"), (audio, "audioUrls")):
                if there:
                    raise InvalidParameter(f"params.{named}", "不能与首帧、尾帧同时使用")
        if audio and not (videos or self.references()):
            raise InvalidParameter("params.audioUrls", "须同时有参考图或参考视频")
        if len(images) > MAX_IMAGES:
            raise InvalidParameter(IMAGE_URL, f"图片最多 {MAX_IMAGES} 张")
        if len(images) + len(videos) + len(audio) > MAX_INPUTS:
            raise InvalidParameter(IMAGE_URL, f"图片、视频、音频合计最多 {MAX_INPUTS} 个")
        return self


class SeedVideoRequest(VideoRequest):
    """The Input Schema of 2026-03-23: images with and without real faces have separate fields."""

    resolution: SeedResolution
    non_face_image_url: str | None = None
    non_face_image_urls: list[str] | None = None
    face_image_url: str | None = None

    def references(self) -> list[str]:
        without_face = _all(self.non_face_image_url, self.non_face_image_urls)
        return [*without_face, self.face_image_url] if self.face_image_url else without_face


class VideoRequest2026(VideoRequest):
    """The form since 2026-04-26: one kind of references, and optional hints about faces."""

    reference_image_url: str | None = None
    reference_image_urls: list[str] | None = None
    reference_image_contains_real_face: bool | None = None
    first_frame_contains_real_face: bool | None = None
    last_frame_contains_real_face: bool | None = None

    def references(self) -> list[str]:
        return _all(self.reference_image_url, self.reference_image_urls)


def _all(one: str | None, many: list[str] | None) -> list[str]:
    return [*([one] if one else []), *(many or [])]


def _build_seed(action_input: ActionInput) -> dict[str, Any]:
    request, references, face = _common_fields(action_input)
    request |= _one_or_many("non_face_image_url", references)
    if face:
        request["face_image_url"] = face
    return SeedVideoRequest(**request).model_dump(exclude_none=True)


def _build_2026(action_input: ActionInput) -> dict[str, Any]:
    request, references, face = _common_fields(action_input)
    request |= _one_or_many("reference_image_url", [*references, face] if face else references)
    request["reference_image_contains_real_face"] = True if face else None
    for frame in ("first_frame", "last_frame"):
        hint = getattr(action_input.params, f"{frame}_has_face", None)
        if hint is not None and not request.get(f"{frame}_url"):
            field_name = "firstFrameHasFace" if frame == "first_frame" else "lastFrameHasFace"
            raise InvalidParameter(f"params.{field_name}", "没有对应的首帧或尾帧")
        request[f"{frame}_contains_real_face"] = hint
    return VideoRequest2026(**request).model_dump(exclude_none=True)


def _common_fields(action_input: ActionInput) -> tuple[dict[str, Any], list[str], str | None]:
    """The fields that both forms share; the reference images without a face; the one with a face."""
    params = action_input.params
    assert isinstance(params, TextVideoParams)  # noqa: S101 (for the type checker: the registry pairs them)
    request: dict[str, Any] = {
        "model_name": MODEL_IDS[params.version],
        "prompt": action_input.prompt,
        "duration": params.duration,
        "resolution": params.resolution,
        "aspect_ratio": params.aspect_ratio,
        "watermark": params.watermark,
        "generate_audio": params.generate_audio,
        "enable_web_search": params.enable_web_search,
        "force_asset_upload": params.force_asset_upload,
        **_one_or_many("video_url", params.video_urls),
        **_one_or_many("audio_url", params.audio_urls),
    }
    if not isinstance(params, ImageVideoParams):
        require_reference_images(action_input)
        return request, [], None
    require_reference_images(action_input, params.face_image_url, params.last_frame_url)
    request["last_frame_url"] = params.last_frame_url
    if params.image_role == "reference" or not action_input.references:
        return request, list(action_input.references), params.face_image_url
    if len(action_input.references) > 1:
        raise InvalidParameter(IMAGE_URL, "首帧只能有 1 张；多张参考图请将 params.imageRole 设为 reference")
    request["first_frame_url"] = action_input.references[0]
    return request, [], params.face_image_url


def _one_or_many(field: str, urls: list[str]) -> dict[str, Any]:
    """SEE2AI has one field for a single URL and another for several."""
    if len(urls) == 1:
        return {field: urls[0]}
    return {f"{field}s": list(urls)} if urls else {}


def read_urls(body: dict[str, Any]) -> tuple[str, ...]:
    return as_urls(body.get("result_urls"))[:MAX_RESULTS]


def _video(text: type[TextVideoParams], image: type[ImageVideoParams], build: Any) -> Action:
    return Action(
        name="see2ai_video_generation_v1",
        params={"text_to_video": text, "image_to_video": image},
        submit_path="/api/v1/actions/see2ai_video_generation_v1",
        status_path="/api/v1/actions/see2ai_video_generation_v1/status/{task_id}",
        build=build,
        read_urls=read_urls,
        media="video",
        typical_seconds=240,
        max_references=MAX_IMAGES,
        max_prompt_length=MAX_PROMPT_LENGTH,
        url_params=("lastFrameUrl", "faceImageUrl", "videoUrls", "audioUrls"),
        image_url_fields=(
            "first_frame_url",
            "last_frame_url",
            "non_face_image_url",
            "non_face_image_urls",
            "face_image_url",
            "reference_image_url",
            "reference_image_urls",
        ),
        av_url_fields=("video_url", "video_urls", "audio_url", "audio_urls"),
        normalize_profile="video_seedance_reference",
        caller_field_names={"prompt": "prompt"},
        deadline_seconds=lambda settings: settings.video_deadline_seconds,
    )


VIDEO_SEED = _video(SeedTextVideoParams, SeedImageVideoParams, _build_seed)
VIDEO_2026_04 = _video(TextVideoParams, VideoParams2026, _build_2026)
