import asyncio
import contextlib
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from app.files.media import (
    AudioInfo,
    MediaError,
    OversizedError,
    VideoInfo,
    audio_video,
    inspect_audio,
    inspect_audio_video,
    inspect_image,
    inspect_video,
    isolation,
)
from app.files.media.completeness import require_complete
from tests.support import media_files
from tests.support.media_files import VIDEO_SIZE, audio, video
from tests.support.run import full
from tests.support.waiting import until

pytestmark = pytest.mark.anyio
AUDIO_TYPES = {"mp3": "audio/mpeg", "wav": "audio/wav", "m4a": "audio/mp4", "aac": "audio/aac"}
VIDEOS = [
    ("mp4", {}, "video/mp4"),
    ("mp4", {"audio": True, "movflags": "faststart"}, "video/mp4"),
    ("mp4", {"movflags": "frag_keyframe+empty_moov"}, "video/mp4"),
    ("mov", {}, "video/quicktime"),
    ("webm", {}, "video/webm"),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file whose name gives no hint."""
    return tmp_path / "picture.png"


@pytest.mark.parametrize(("kind", "options", "mime"), VIDEOS)
async def test_a_video_is_recognized_by_its_bytes(path: Path, kind: str, options: dict[str, object], mime: str) -> None:
    path.write_bytes(video(kind, **options))
    found = await inspect_video(path)
    assert found == VideoInfo(mime, kind, *VIDEO_SIZE, pytest.approx(1, abs=0.11))


@pytest.mark.parametrize("kind", media_files.AUDIOS)
async def test_an_audio_is_recognized_by_its_bytes(path: Path, kind: str) -> None:
    path.write_bytes(audio(kind))
    assert await inspect_audio(path) == AudioInfo(AUDIO_TYPES[kind], kind, pytest.approx(1, abs=0.11))


@pytest.mark.parametrize(("kind", "options", "mime"), VIDEOS)
@pytest.mark.parametrize("kept", [0.0, 0.99, *full(0.001, 0.3)])
async def test_a_truncated_video_fails(
    path: Path, kind: str, options: dict[str, object], mime: str, kept: float
) -> None:
    whole = video(kind, **options)
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(MediaError):
        await inspect_video(path)


@pytest.mark.parametrize(("kind", "kept"), [("wav", 0.9), ("m4a", 0.9), ("wav", 0.0001), ("mp3", 0.001), ("aac", 0.01)])
async def test_a_truncated_audio_file_fails(path: Path, kind: str, kept: float) -> None:
    whole = audio(kind)
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(MediaError):
        await inspect_audio(path)


async def test_the_announced_frames_must_exist(path: Path) -> None:
    """All boxes are complete, but the one with the frames is missing."""
    whole = video("mp4", movflags="faststart")
    path.write_bytes(whole[: whole.index(b"mdat") - 4])
    with pytest.raises(MediaError, match=r"truncated|decodes"):
        await inspect_video(path)


async def test_a_live_recording_needs_no_length(path: Path) -> None:
    """As browsers record WebM: no duration, no length of the segment."""
    path.write_bytes(video("webm", live=True))
    assert (await inspect_video(path)).duration_seconds == pytest.approx(1, abs=0.11)


async def test_extra_data_of_a_camera_after_a_video_is_accepted(path: Path) -> None:
    path.write_bytes(video("mp4") + b"\0\0\0\x10SEFT" + b"x" * 20)
    assert await inspect_video(path)


async def test_a_video_of_a_phone_held_upright_is_upright(path: Path) -> None:
    path.write_bytes(media_files.turned_quarter(video("mp4")))
    found = await inspect_video(path)
    assert (found.width, found.height) == VIDEO_SIZE[::-1]


async def test_a_song_with_a_cover_is_an_audio(path: Path) -> None:
    path.write_bytes(media_files.with_cover("mp3"))
    assert await inspect_audio_video(path) == AudioInfo("audio/mpeg", "mp3", pytest.approx(1, abs=0.11))


async def test_a_song_with_a_title_in_gbk_is_accepted(path: Path) -> None:
    title = b"TIT2" + (9).to_bytes(4, "big") + b"\0\0\0" + "茉莉花香".encode("gbk")
    path.write_bytes(b"ID3\3\0\0" + bytes([0, 0, 0, len(title)]) + title + audio("mp3"))
    assert await inspect_audio(path)


async def test_videos_and_audios_are_distinguished(path: Path) -> None:
    path.write_bytes(video("mp4"))
    with pytest.raises(MediaError):
        await inspect_audio(path)
    path.write_bytes(audio("m4a"))
    with pytest.raises(MediaError):
        await inspect_video(path)
    with pytest.raises(MediaError):
        await inspect_image(path)


@pytest.mark.parametrize("options", [{"kind": "webm", "container": "matroska"}, {"kind": "mov", "codec": "mpeg2video"}])
async def test_other_containers_and_codecs_are_refused(path: Path, options: dict[str, str]) -> None:
    path.write_bytes(video(**options))
    with pytest.raises(MediaError):
        await inspect_audio_video(path)


@pytest.mark.parametrize("change", ["MAX_DURATION_SECONDS", "MAX_EDGE", "MAX_PIXELS"])
def test_a_video_too_long_or_too_large_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    path.write_bytes(video("mp4"))
    assert audio_video.probe(path)["width"] == VIDEO_SIZE[0]
    monkeypatch.setattr(audio_video, change, 0.5)
    with pytest.raises(OversizedError):
        audio_video.probe(path)


async def test_a_video_of_9000_pixels_is_refused_across_the_processes(path: Path) -> None:
    path.write_bytes(video("mp4", seconds=0.1, size=(9000, 16)))
    with pytest.raises(OversizedError, match="9000"):
        await inspect_video(path)


@pytest.mark.parametrize("before", [b"\0\0\0\x18ftypisom\0\0\2\0isommp41", *full(b"", b"ID3\4\0\0\0\0\0\0")])
async def test_a_playlist_opens_nothing(path: Path, tmp_path: Path, before: bytes) -> None:
    (tmp_path / "secret.mp4").write_bytes(video("mp4"))
    with listening() as (port, called):
        lists = [
            f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:{port}/a.ts\n#EXT-X-ENDLIST\n",
            f"ffconcat version 1.0\nfile http://127.0.0.1:{port}/a.mp4\n",
            f"ffconcat version 1.0\nfile {tmp_path / 'secret.mp4'}\n",
            f'<?xml version="1.0"?><MPD><BaseURL>http://127.0.0.1:{port}/</BaseURL></MPD>',
        ]
        for text in lists:
            path.write_bytes(before + text.encode())
            with pytest.raises(MediaError):
                await inspect_audio_video(path)
        assert not called.wait(0.2)


@pytest.mark.parametrize(("demuxer", "text"), [("hls", "#EXTM3U\n#EXTINF:1,\n{}\n"), ("concat", "file {}\n")])
def test_even_a_demuxer_that_follows_links_opens_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, demuxer: str, text: str
) -> None:
    """The second protection, tested with the first one removed."""
    monkeypatch.setattr(audio_video, "sniff", lambda _: "audio/aac")
    monkeypatch.setitem(audio_video.DEMUXERS, "audio/aac", demuxer)
    with listening() as (port, called):
        path.write_text(text.format(f"http://127.0.0.1:{port}/a.ts"))
        with pytest.raises(MediaError):
            audio_video.probe(path)
        assert not called.wait(0.2)
        monkeypatch.setitem(audio_video.OPEN_OPTIONS, "io_open", None)
        monkeypatch.setitem(audio_video.OPEN_OPTIONS["container_options"], "safe", "0")
        with pytest.raises(MediaError):
            audio_video.probe(path)
        assert called.wait(60)


async def test_700_bytes_do_not_need_gigabytes(path: Path) -> None:
    """Without a limit, the reader needs 2.8 GB for this one."""
    path.write_bytes(media_files.many_samples(80_000_000))
    with pytest.raises(MediaError):
        await inspect_video(path)
    script = (  # a process between, because a child's peak starts at that of the process it was forked from
        "import resource, subprocess, sys\n"
        "subprocess.run([sys.executable, '-m', 'app.files.media.isolated_main', 'probe', sys.argv[1]], check=True)\n"
        "print('', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)"
    )
    said = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    assert "refused" in said.stdout
    assert int(said.stdout.split()[-1]) < 1_500_000_000


async def test_a_long_video_takes_no_memory(path: Path) -> None:
    """300 MB through the reader, measured in a separate process."""
    with path.open("wb") as file:
        file.writelines(media_files.long_video(300_000_000))
    assert path.stat().st_size > 300_000_000
    script = (
        "import resource, sys; from pathlib import Path; from app.files.media.audio_video import probe; import av\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "small, large = map(Path, sys.argv[1:])\n"
        "probe(small); before = peak(); print(probe(large), (peak() - before) * 1024)"
    )
    small = path.with_name("small.mp4")
    small.write_bytes(b"".join(media_files.long_video(1)))
    said = subprocess.run([sys.executable, "-c", script, small, path], capture_output=True, text=True, check=True)
    print(said.stdout)
    assert int(said.stdout.split()[-1]) < 20_000_000


async def test_the_reader_gets_no_secrets_and_ends_with_its_caller(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Instead of Python, a script that writes its environment and its pid, and sleeps."""
    script, payload = tmp_path / "python", tmp_path / "payload"
    script.write_text(f"#!/bin/sh\necho $$ > {payload}\nenv >> {payload}\nexec sleep 60\n")
    script.chmod(0o755)
    monkeypatch.setenv("JWT_SECRET", "planted-secret")
    monkeypatch.setattr(isolation.sys, "executable", str(script))
    waiting = asyncio.create_task(inspect_video(path))
    while not (payload.exists() and "PATH" in payload.read_text()):
        await asyncio.sleep(0.02)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert "planted" not in payload.read_text()
    reader = Path("/proc", payload.read_text().split()[0])
    await until("the reader has ended", lambda: not reader.exists())


async def test_a_reader_that_hangs_is_ended(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nexec sleep 60\n")
    script.chmod(0o755)
    monkeypatch.setattr(isolation.sys, "executable", str(script))
    monkeypatch.setattr(isolation, "TIMEOUT_SECONDS", 0.2)
    with pytest.raises(MediaError, match="too long"):
        await inspect_video(path)


@pytest.mark.parametrize(("command", "error"), [("kill -9 $$", MediaError), ("exit 1", RuntimeError)])
async def test_a_reader_that_dies_is_a_bad_file_and_one_that_cannot_start_is_our_error(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str, error: type[Exception]
) -> None:
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\n{command}\n")
    script.chmod(0o755)
    monkeypatch.setattr(isolation.sys, "executable", str(script))
    with pytest.raises(error):
        await inspect_video(path)


@pytest.mark.parametrize("mime", ["video/mp4", "video/webm", "audio/wav"])
def test_any_bytes_have_a_length_or_none(path: Path, mime: str) -> None:
    """Incomplete heads, lengths of no or of eight bytes: a length or a MediaError, no other exception."""
    heads = [b"", b"\0", b"\0" * 40, b"\xff" * 40, b"\0\0\0\1ftyp", b"\0\0\0\1mdat\xff" + b"\xff" * 7, b"\0\0\0\4free"]
    heads += [b"\x1a\x45\xdf\xa3", b"\x1a\x45\xdf\xa3\x01", b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\x01" + b"\xff" * 7]
    for head in heads:
        path.write_bytes(head)
        with path.open("rb") as file, contextlib.suppress(MediaError):
            require_complete(file, mime)


@contextlib.contextmanager
def listening():
    """A port, and whether anything has connected to it."""
    called = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        port, closing = server.getsockname()[1], threading.Event()

        def wait() -> None:
            while not closing.is_set():
                with contextlib.suppress(TimeoutError):
                    server.accept()[0].close()
                    called.set()

        thread = threading.Thread(target=wait)
        thread.start()
        yield port, called
        closing.set()
        thread.join()
