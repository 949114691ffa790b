"""The video files: their decoded content, and the padding that makes them large."""

import io
import struct

import av
import pytest

from app.sandbox.faults.padding import PaddedVideo
from app.sandbox.media.videos import VideoSpec, encode_video, video_size
from tests.support.run import full


def encoded(**fields: object) -> bytes:
    given = {"text": "一只猫", "digest": "d", "label": "label", "size": (480, 480), "seconds": 4, "has_audio": True}
    return encode_video(VideoSpec(**given | fields))  # type: ignore[arg-type]


def boxes(mp4: bytes) -> list[tuple[str, int]]:
    """The top-level boxes of the file, in their order. Raises struct.error if their lengths do not add up."""
    found, at = [], 0
    while at < len(mp4):
        length, kind = struct.unpack_from(">I4s", mp4, at)
        if length == 1:
            (length,) = struct.unpack_from(">Q", mp4, at + 8)
        found.append((kind.decode(), length))
        at += length
    assert at == len(mp4)
    return found


@pytest.mark.parametrize("seconds", [4, *full(7, 15)])
@pytest.mark.parametrize("has_audio", [True, False])
def test_a_real_video(seconds: int, has_audio: bool) -> None:
    mp4 = encoded(seconds=seconds, has_audio=has_audio)
    with av.open(io.BytesIO(mp4)) as container:
        (video,) = container.streams.video
        assert (video.codec_context.name, video.codec_context.profile, video.pix_fmt) == ("h264", "High", "yuv420p")
        assert (video.width, video.height) == (480, 480)
        assert abs(container.duration / av.time_base - seconds) < 0.05
        assert [stream.codec_context.name for stream in container.streams.audio] == ["aac"] * has_audio
        frames = list(container.decode(video=0))
    assert len(frames) == seconds * 8
    assert len({bytes(frame.to_image().tobytes()) for frame in frames}) == len(frames), "the picture must change"


def test_the_audio_lasts_as_long_as_the_video_and_is_not_silent() -> None:
    with av.open(io.BytesIO(encoded(seconds=5))) as container:
        frames = list(container.decode(audio=0))
    assert abs(sum(frame.samples for frame in frames) / 48_000 - 5) < 0.05
    assert any(any(bytes(frame.planes[0])) for frame in frames)


def test_the_index_comes_first_so_that_browsers_start_at_once() -> None:
    kinds = [kind for kind, _ in boxes(encoded())]
    assert kinds.index("moov") < kinds.index("mdat")


def test_the_same_spec_gives_the_same_bytes_and_another_digest_others() -> None:
    first = encoded()
    encode_video.cache_clear()
    assert encoded() == first
    assert encoded(digest="e") != first


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
    assert video_size(ratio, resolution) == size


@pytest.mark.anyio
@pytest.mark.parametrize("more_bytes", [8, 9, 1_000_000])
async def test_padding_is_a_free_box_that_decoders_skip(more_bytes: int) -> None:
    video = encoded()
    padded = PaddedVideo(video, len(video) + more_bytes, {"content-type": "video/mp4"})
    mp4 = b"".join([chunk async for chunk in padded._chunks()])
    assert len(mp4) == int(padded.headers["content-length"]) == len(video) + more_bytes
    assert boxes(mp4)[-1] == ("free", more_bytes)
    with av.open(io.BytesIO(mp4)) as container:
        assert len(list(container.decode(video=0))) == 32


def test_padding_beyond_four_gigabytes_has_the_long_form() -> None:
    video = encoded()
    padded = PaddedVideo(video, 6 << 30, {})
    assert int(padded.headers["content-length"]) == 6 << 30


def test_a_size_without_room_for_a_box_changes_nothing() -> None:
    video = encoded()
    assert int(PaddedVideo(video, len(video) + 7, {}).headers["content-length"]) == len(video)
    assert int(PaddedVideo(video, 10, {}).headers["content-length"]) == len(video)
