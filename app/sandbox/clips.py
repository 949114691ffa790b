"""Encodes the clips: a picture as pictures.py draws it, with a bar and a clock that move, and a tone. Pure CPU.

H.264 (High, yuv420p) and, where asked for, AAC in an MP4 whose index comes first, so that browsers play it while it
loads. Eight frames a second: a clip of 15 seconds at 720p takes less than a second of one core.
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

from app.sandbox.pictures import WHITE, Brush, Picture, load_font, paint

FRAMES_PER_SECOND = 8
SAMPLES_PER_SECOND = 48_000
SAMPLES_AT_ONCE = 1024
CLIPS_CACHED = 8
PITCH_HERTZ = 440
BEEP_SECONDS = 0.2
LOUDNESS = 0.1
ADAPTIVE, ADAPTIVE_RATIO = "adaptive", "16:9"
SHORT_SIDES = {"480p": 480, "720p": 720, "1080p": 1080}
X264 = {"preset": "superfast", "crf": "28", "profile": "high"}


@dataclass(frozen=True, slots=True)
class Clip:
    """What is to be filmed. `label` is the small line below the text."""

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


@lru_cache(maxsize=CLIPS_CACHED)
def encode(clip: Clip) -> bytes:
    """The MP4; the same Clip always gives the same bytes. Takes up to seconds: call it in a thread."""
    with tempfile.TemporaryDirectory(prefix="sandbox-clip-") as folder:
        path = Path(folder) / "clip.mp4"
        # On disk, because the index can only be moved to the front of a file that can be read again.
        with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
            film = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options=X264)
            film.width, film.height = clip.size
            film.pix_fmt = "yuv420p"
            film.thread_count = 1
            film.gop_size = FRAMES_PER_SECOND * 2
            sound = container.add_stream("aac", rate=SAMPLES_PER_SECOND, layout="mono") if clip.has_audio else None
            for frame in _frames(clip):
                container.mux(film.encode(frame))
            container.mux(film.encode())
            if sound is not None:
                for tone in _tones(clip.seconds):
                    container.mux(sound.encode(tone))
                container.mux(sound.encode())
        return path.read_bytes()


def measure_clip(aspect_ratio: str, resolution: str) -> tuple[int, int]:
    """Width and height: the shorter side as the resolution says, the longer one by the ratio, to the next even."""
    across, down = (int(part) for part in aspect_ratio.replace(ADAPTIVE, ADAPTIVE_RATIO).split(":"))
    short = SHORT_SIDES[resolution]
    long = round(short * max(across, down) / min(across, down) / 2) * 2
    return (long, short) if across >= down else (short, long)


def _frames(clip: Clip) -> Iterator[av.VideoFrame]:
    """The still picture, and on each frame a bar that grows and a clock that runs."""
    still = paint(Picture(clip.text, clip.digest, clip.label, clip.size, "png", clip.index))
    (width, height), count = clip.size, clip.seconds * FRAMES_PER_SECOND
    font = load_font(height // 16)
    for number in range(count):
        image: Image.Image = still.copy()
        brush: Brush = ImageDraw.Draw(image)
        brush.rectangle((0, height - height // 60, width * (number + 1) // count, height), fill=WHITE)
        clock = f"{number / FRAMES_PER_SECOND:.1f} s"
        brush.text((width - height // 24, height - height // 24), clock, WHITE, font, anchor="rs")
        frame = av.VideoFrame.from_image(image)  # type: ignore[no-untyped-call]
        frame.pts, frame.time_base = number, Fraction(1, FRAMES_PER_SECOND)
        yield frame


def _tones(seconds: int) -> Iterator[av.AudioFrame]:
    """A short beep at the beginning of each second."""
    turn, fading = 2 * math.pi * PITCH_HERTZ / SAMPLES_PER_SECOND, BEEP_SECONDS * SAMPLES_PER_SECOND
    second = array("f", (LOUDNESS * math.sin(turn * n) * max(0, 1 - n / fading) for n in range(SAMPLES_PER_SECOND)))
    samples = second.tobytes() * seconds
    for start in range(0, len(samples), SAMPLES_AT_ONCE * second.itemsize):
        part = samples[start : start + SAMPLES_AT_ONCE * second.itemsize]
        tone = av.AudioFrame(format="fltp", layout="mono", samples=len(part) // second.itemsize)
        tone.planes[0].update(part)
        tone.rate, tone.pts = SAMPLES_PER_SECOND, start // second.itemsize
        tone.time_base = Fraction(1, SAMPLES_PER_SECOND)
        yield tone
