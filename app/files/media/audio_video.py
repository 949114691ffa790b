"""Films and sounds: kind, size, length, whether they are whole and begin to decode; packets are counted, not played.

MP4, MOV and WebM; MP3, WAV, M4A and AAC. An MP3 or AAC promises no length, so what there is of it counts as all.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from app.files.media.completeness import require_complete
from app.files.media.images import MAX_PIXELS, MediaError, OversizedError
from app.files.media.isolation import run_isolated
from app.files.media.sniff import START_BYTES, sniff

if TYPE_CHECKING:  # loaded in the confined process alone
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.video.stream import VideoStream

MAX_DURATION_SECONDS = 4 * 3600
MAX_EDGE = 8192
DEMUXERS = {
    "video/mp4": "mov",
    "video/quicktime": "mov",
    "video/webm": "matroska",
    "audio/mpeg": "mp3",
    "audio/wav": "wav",
    "audio/aac": "aac",
}
"""Named for every file, so that none of the demuxers that open further files or addresses is ever tried."""
EXTENSIONS = {
    "video/mp4": "mp4",
    "video/quicktime": "mov",
    "video/webm": "webm",
    "audio/mpeg": "mp3",
    "audio/wav": "wav",
    "audio/aac": "aac",
    "audio/mp4": "m4a",
}
VIDEO_CODECS = frozenset({"h264", "hevc", "av1", "libdav1d", "vp8", "vp9", "mpeg4"})
AUDIO_CODECS = frozenset({"aac", "alac", "mp3", "mp3float", "opus", "libopus", "vorbis"})
PCM = frozenset({"pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_s16be", "pcm_s24be"})
CODECS = VIDEO_CODECS | AUDIO_CODECS | PCM
DURATION_TOLERANCE_SECONDS = 1.0
MIN_FRAME_RATIO = 0.9  # of the frames promised: QuickTime counts empty ones, too


@dataclass(frozen=True)
class VideoInfo:
    """`ext` has no dot; width and height are as shown, that is after the rotation a phone notes."""

    mime: str
    ext: str
    width: int
    height: int
    duration_seconds: float


@dataclass(frozen=True)
class AudioInfo:
    mime: str
    ext: str
    duration_seconds: float


async def inspect_video(path: Path) -> VideoInfo:
    """Raises MediaError unless it is a whole MP4, MOV or WebM of at most 4 h and 8192 pixels a side."""
    found = await inspect_audio_video(path)
    if not isinstance(found, VideoInfo):
        raise MediaError("no film in it")
    return found


async def inspect_audio(path: Path) -> AudioInfo:
    """Raises MediaError unless it is a whole MP3, WAV, M4A or AAC of at most 4 h."""
    found = await inspect_audio_video(path)
    if not isinstance(found, AudioInfo):
        raise MediaError("not only sound")
    return found


async def inspect_audio_video(path: Path) -> VideoInfo | AudioInfo:
    """Either of them: only its inside tells whether an MP4 is a film. Raises MediaError."""
    found = await run_isolated("probe", path)
    return VideoInfo(**found) if "width" in found else AudioInfo(**found)


def probe(path: Path) -> dict[str, Any]:
    """The work itself, in the confined process."""
    import av  # only that process needs its libraries

    with path.open("rb") as file:
        mime = sniff(file.read(START_BYTES)) or ""
        if mime not in DEMUXERS:
            raise MediaError("neither film nor sound")
        require_complete(file, mime)
        file.seek(0)
        try:
            with av.open(file, "r", DEMUXERS[mime], **OPENING) as container:
                return asdict(_read(container, mime))
        except MediaError:
            raise
        except Exception as error:  # as Pillow's readers, these raise whatever a hostile file drives them to
            raise MediaError(f"not a readable recording ({type(error).__name__})") from error


def _reject_open(*_: object) -> NoReturn:
    """In the place of what opens further files and addresses, whatever a file says."""
    raise MediaError("wants to open something else")


OPENING: dict[str, Any] = {
    "container_options": {
        "codec_whitelist": ",".join(sorted(CODECS)),
        "ignore_editlist": "1",  # with them, frames nobody sees would be missing from the count
    },
    "io_open": _reject_open,
    "metadata_errors": "replace",  # old MP3s name their songs in GBK
}


def _read(container: "InputContainer", mime: str) -> VideoInfo | AudioInfo:
    from av.stream import Disposition
    from av.video.frame import VideoFrame

    film = next((s for s in container.streams.video if not s.disposition & Disposition.attached_pic), None)
    sound = next(iter(container.streams.audio), None)
    lead = film or sound
    if lead is None or (film is None and mime == "video/webm"):
        raise MediaError("neither film nor sound in it")
    if lead.codec_context.name not in CODECS:
        raise MediaError(f"a codec we do not keep ({lead.codec_context.name})")
    if film is not None:
        _require_size(film.codec_context.width, film.codec_context.height)
    seconds, first = _measure(container, lead)
    claimed = (container.duration or 0) / 1_000_000
    if mime == "video/webm" and seconds < claimed - max(DURATION_TOLERANCE_SECONDS, claimed * (1 - MIN_FRAME_RATIO)):
        raise MediaError(f"cut: {seconds:.1f} of {claimed:.1f} s")
    if not isinstance(first, VideoFrame):
        kind = "audio/mp4" if DEMUXERS[mime] == "mov" else mime
        return AudioInfo(kind, EXTENSIONS[kind], round(seconds, 3))
    _require_size(first.width, first.height)
    lies = first.rotation % 180 != 0
    width, height = (first.height, first.width) if lies else (first.width, first.height)
    return VideoInfo(mime, EXTENSIONS[mime], width, height, round(seconds, 3))


def _require_size(width: int, height: int) -> None:
    if max(width, height) > MAX_EDGE or width * height > MAX_PIXELS:
        raise OversizedError(f"too large ({width}x{height})")


def _measure(container: "InputContainer", lead: "VideoStream | AudioStream") -> tuple[float, object]:
    """Through all packets of a stream, of which one is held at a time: how long it is, and its first frame."""
    lead.codec_context.thread_count = 1  # each thread would take its share of the process' memory
    unit = float(lead.time_base or 0)
    first, packets, begin, end = None, 0, math.inf, 0.0
    for packet in container.demux(lead):
        if first is None:
            first = next(iter(packet.decode()), None)
        at = packet.dts if packet.pts is None else packet.pts
        if not packet.size or at is None:  # the last one is empty, and makes the decoder give what it still holds
            continue
        packets += 1
        begin, end = min(begin, at * unit), max(end, (at + (packet.duration or 0)) * unit)
        if end - begin > MAX_DURATION_SECONDS:
            raise OversizedError(f"too long ({end - begin:.0f} s)")
    if first is None:
        raise MediaError("nothing of it decodes")
    if lead.type == "video" and packets < lead.frames * MIN_FRAME_RATIO:
        raise MediaError(f"cut: {packets} of {lead.frames} frames")
    return end - begin, first
