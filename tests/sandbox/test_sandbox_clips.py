"""The clips themselves: what a decoder finds in them, and the padding that makes them large."""

import io
import struct

import av
import pytest

from app.sandbox.clips import Clip, encode, measure_clip
from app.sandbox.large import Padded


def film(**fields: object) -> bytes:
    given = {"text": "一只猫", "digest": "d", "label": "label", "size": (480, 480), "seconds": 4, "has_audio": True}
    return encode(Clip(**given | fields))  # type: ignore[arg-type]


def boxes(mp4: bytes) -> list[tuple[str, int]]:
    """The file's own boxes, in their order; struct.error where they do not add up."""
    found, at = [], 0
    while at < len(mp4):
        length, kind = struct.unpack_from(">I4s", mp4, at)
        if length == 1:
            (length,) = struct.unpack_from(">Q", mp4, at + 8)
        found.append((kind.decode(), length))
        at += length
    assert at == len(mp4)
    return found


@pytest.mark.parametrize("seconds", [4, 7, 15])
@pytest.mark.parametrize("has_audio", [True, False])
def test_a_real_clip(seconds: int, has_audio: bool) -> None:
    mp4 = film(seconds=seconds, has_audio=has_audio)
    with av.open(io.BytesIO(mp4)) as container:
        (video,) = container.streams.video
        assert (video.codec_context.name, video.codec_context.profile, video.pix_fmt) == ("h264", "High", "yuv420p")
        assert (video.width, video.height) == (480, 480)
        assert abs(container.duration / av.time_base - seconds) < 0.05
        assert [stream.codec_context.name for stream in container.streams.audio] == ["aac"] * has_audio
        frames = list(container.decode(video=0))
    assert len(frames) == seconds * 8
    assert len({bytes(frame.to_image().tobytes()) for frame in frames}) == len(frames), "something moves"


def test_the_sound_lasts_as_long_as_the_picture_and_is_heard() -> None:
    with av.open(io.BytesIO(film(seconds=5))) as container:
        sounds = list(container.decode(audio=0))
    assert abs(sum(sound.samples for sound in sounds) / 48_000 - 5) < 0.05
    assert any(any(bytes(sound.planes[0])) for sound in sounds)


def test_the_index_comes_first_so_that_browsers_start_at_once() -> None:
    kinds = [kind for kind, _ in boxes(film())]
    assert kinds.index("moov") < kinds.index("mdat")


def test_the_same_clip_gives_the_same_bytes_and_another_digest_others() -> None:
    first = film()
    encode.cache_clear()
    assert film() == first
    assert film(digest="e") != first


@pytest.mark.parametrize(
    ("ratio", "resolution", "size"),
    [
        ("adaptive", "720p", (1280, 720)),
        ("16:9", "480p", (854, 480)),
        ("9:16", "720p", (720, 1280)),
        ("1:1", "480p", (480, 480)),
        ("21:9", "720p", (1680, 720)),
        ("4:3", "720p", (960, 720)),
        ("3:4", "480p", (480, 640)),
        ("16:9", "1080p", (1920, 1080)),
    ],
)
def test_sizes(ratio: str, resolution: str, size: tuple[int, int]) -> None:
    assert measure_clip(ratio, resolution) == size


@pytest.mark.anyio
@pytest.mark.parametrize("more_bytes", [8, 9, 1_000_000])
async def test_padding_is_a_free_box_that_decoders_pass_over(more_bytes: int) -> None:
    clip = film()
    padded = Padded(clip, len(clip) + more_bytes, {"content-type": "video/mp4"})
    mp4 = b"".join([chunk async for chunk in padded._chunks()])
    assert len(mp4) == int(padded.headers["content-length"]) == len(clip) + more_bytes
    assert boxes(mp4)[-1] == ("free", more_bytes)
    with av.open(io.BytesIO(mp4)) as container:
        assert len(list(container.decode(video=0))) == 32


def test_padding_beyond_four_gigabytes_has_the_long_form() -> None:
    clip = film()
    padded = Padded(clip, 6 << 30, {})
    assert int(padded.headers["content-length"]) == 6 << 30


def test_a_size_without_room_for_a_box_changes_nothing() -> None:
    clip = film()
    assert int(Padded(clip, len(clip) + 7, {}).headers["content-length"]) == len(clip)
    assert int(Padded(clip, 10, {}).headers["content-length"]) == len(clip)
