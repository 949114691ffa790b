"""Encodes the videos: an image as images.py draws it, with a bar and a clock that move, and a tone. CPU only.

H.264 (High, yuv420p) and, where asked for, AAC in an MP4 whose index comes first, so that browsers play it while it
loads. Eight frames a second: a video of 15 seconds at 720p takes less than a second of one core.
"""

import math
import tempfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
from PIL import Image, ImageDraw

from app.sandbox.media.images import WHITE, ImageSpec, load_font, paint_image

FRAMES_PER_SECOND = 8
SAMPLES_PER_SECOND = 48_000
SAMPLES_PER_FRAME = 1024
MAX_CACHED_VIDEOS = 8
TONE_HERTZ = 440
BEEP_SECONDS = 0.2
AMPLITUDE = 0.1
ADAPTIVE, ADAPTIVE_RATIO = "adaptive", "16:9"
SHORT_SIDES = {"480p": 480, "720p": 720, "1080p": 1080}
X264 = {"preset": "superfast", "crf": "28", "profile": "high"}


@dataclass(frozen=True, slots=True)
class VideoSpec:
    """What is to be encoded. `label` is the small line below the text."""

    text: str
    digest: str
    label: str
    size: tuple[int, int]
    seconds: int
    has_audio: bool
    index: int = 0

    @property
    def output_format(self) -> str:
        return "mp4"


@lru_cache(maxsize=MAX_CACHED_VIDEOS)
def encode_video(spec: VideoSpec) -> bytes:
    """The MP4; the same VideoSpec always gives the same bytes. Takes up to seconds: call it in a thread."""
    with tempfile.TemporaryDirectory(prefix="sandbox-video-") as folder:
        path = Path(folder) / "video.mp4"
        # On disk, because the index can only be moved to the front of a file that can be read again.
        with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
            video = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options=X264)
            video.width, video.height = spec.size
            video.pix_fmt = "yuv420p"
            video.thread_count = 1
            video.gop_size = FRAMES_PER_SECOND * 2
            audio = container.add_stream("aac", rate=SAMPLES_PER_SECOND, layout="mono") if spec.has_audio else None
            for frame in _video_frames(spec):
                container.mux(video.encode(frame))
            container.mux(video.encode())
            if audio is not None:
                for audio_frame in _audio_frames(spec.seconds):
                    container.mux(audio.encode(audio_frame))
                container.mux(audio.encode())
        return path.read_bytes()


def video_size(aspect_ratio: str, resolution: str) -> tuple[int, int]:
    """Width and height: the shorter side as the resolution says, the longer one by the ratio, to the next even."""
    width, height = (int(part) for part in aspect_ratio.replace(ADAPTIVE, ADAPTIVE_RATIO).split(":"))
    short = SHORT_SIDES[resolution]
    long = round(short * max(width, height) / min(width, height) / 2) * 2
    return (long, short) if width >= height else (short, long)


def _video_frames(spec: VideoSpec) -> Iterator[av.VideoFrame]:
    """The still image, and on each frame a bar that grows and a clock that runs."""
    still = paint_image(ImageSpec(spec.text, spec.digest, spec.label, spec.size, "png", spec.index))
    (width, height), count = spec.size, spec.seconds * FRAMES_PER_SECOND
    font = load_font(height // 16)
    for number in range(count):
        image: Image.Image = still.copy()
        draw = ImageDraw.Draw(image)
        draw.rectangle((0, height - height // 60, width * (number + 1) // count, height), fill=WHITE)
        clock = f"{number / FRAMES_PER_SECOND:.1f} s"
        draw.text((width - height // 24, height - height // 24), clock, WHITE, font, anchor="rs")
        frame = av.VideoFrame.from_image(image)  # type: ignore[no-untyped-call]
        frame.pts, frame.time_base = number, Fraction(1, FRAMES_PER_SECOND)
        yield frame


def _audio_frames(seconds: int) -> Iterator[av.AudioFrame]:
    """A short beep at the beginning of each second."""
    step, beep_samples = 2 * math.pi * TONE_HERTZ / SAMPLES_PER_SECOND, BEEP_SECONDS * SAMPLES_PER_SECOND
    beep = (AMPLITUDE * math.sin(step * n) * max(0, 1 - n / beep_samples) for n in range(SAMPLES_PER_SECOND))
    second = array("f", beep)
    samples = second.tobytes() * seconds
    for start in range(0, len(samples), SAMPLES_PER_FRAME * second.itemsize):
        part = samples[start : start + SAMPLES_PER_FRAME * second.itemsize]
        frame = av.AudioFrame(format="fltp", layout="mono", samples=len(part) // second.itemsize)
        frame.planes[0].update(part)
        frame.rate, frame.pts = SAMPLES_PER_SECOND, start // second.itemsize
        frame.time_base = Fraction(1, SAMPLES_PER_SECOND)
        yield frame
