"""Small videos, audios and unusual pictures, made when a test needs them."""

import io
import os
import struct
import tempfile
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import av
import pillow_heif
from PIL import Image

VIDEO_SIZE = (64, 48)
FRAMES_PER_SECOND = 10
AUDIO_RATE = 44_100
CODECS = {"mp4": "libx264", "mov": "libx264", "webm": "libvpx-vp9"}
AUDIOS = {"mp3": ("libmp3lame", "mp3"), "wav": ("pcm_s16le", "wav"), "m4a": ("aac", "ipod"), "aac": ("aac", "adts")}


@cache
def video(kind: str = "mp4", *, seconds: float = 1, size: tuple[int, int] = VIDEO_SIZE, **options: Any) -> bytes:
    """Keyword options: `codec`, `container`, `audio`, `movflags` and `live`."""
    muxing = {"movflags": options["movflags"]} if "movflags" in options else {}
    muxing |= {"live": "1"} if options.get("live") else {}
    with tempfile.NamedTemporaryFile() as file:  # with a name: the muxer reads the file again
        _video(file.name, kind, seconds, size, muxing, options)
        return Path(file.name).read_bytes()


def _video(path: str, kind: str, seconds: float, size: tuple[int, int], muxing: dict[str, str], options: Any) -> None:
    with av.open(path, "w", format=options.get("container") or kind, options=muxing) as out:
        stream = out.add_stream(options.get("codec") or CODECS[kind], rate=FRAMES_PER_SECOND)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        audio = out.add_stream("aac", rate=AUDIO_RATE) if options.get("audio") else None
        for number in range(int(seconds * FRAMES_PER_SECOND)):
            frame = av.VideoFrame(*size, "yuv420p")
            for plane in frame.planes:  # noise has many bytes, so that truncation is noticed
                plane.update(bytes([number]) + os.urandom(plane.buffer_size - 1))
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
        if audio is not None:
            _hum(out, audio, seconds)


@cache
def audio(kind: str, *, seconds: float = 1) -> bytes:
    codec, container = AUDIOS[kind]
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        _hum(out, out.add_stream(codec, rate=AUDIO_RATE), seconds)
    return file.getvalue()


def silence(size_bytes: int) -> bytes:
    """A WAV of exactly that many bytes."""
    header = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", size_bytes - 8, b"WAVE", b"fmt ", 16, 1, 2, 44100, 176400, 4, 16)
    return header + struct.pack("<4sI", b"data", size_bytes - 44) + bytes(size_bytes - 44)


def image(kind: str, size: tuple[int, int] = (60, 40), mode: str = "RGB", **options: Any) -> bytes:
    """As Pillow and pillow-heif write it. The upper left quarter is red, the rest is blue."""
    pillow_heif.register_heif_opener()
    image = Image.new(mode, size, (0, 0, 255, 255)[: len(mode)])
    image.paste((255, 0, 0, 255)[: len(mode)], (0, 0, size[0] // 2, size[1] // 2))
    if options.pop("clear", False):
        image.putpixel((size[0] - 1, size[1] - 1), (0, 0, 0, 0))
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def long_video(size_bytes: int) -> Iterator[bytes]:
    """At least that many bytes of one video, which repeats the same fragments."""
    movflags = "frag_keyframe+empty_moov+default_base_moof"
    whole = video("mp4", seconds=2, size=(320, 240), movflags=movflags)
    begin, end = whole.index(b"moof") - 4, whole.index(b"mfra") - 4
    yield whole[:begin]
    for _ in range(size_bytes // (end - begin) + 1):
        yield whole[begin:end]


def png_claiming(width: int, height: int) -> bytes:
    """A tiny PNG whose header claims a huge picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def many_samples(count: int) -> bytes:
    """700 bytes of MP4 that claim `count` frames of one byte each."""
    ftyp = _box(b"ftyp", b"isom\0\0\2\0isommp41")
    entry = _box(b"mp4v", b"\0" * 6 + b"\0\1" + b"\0" * 16 + struct.pack(">HH", 64, 64) + b"\0" * 50)
    table = _box(
        b"stbl",
        _full(b"stsd", struct.pack(">I", 1), entry)
        + _full(b"stts", struct.pack(">III", 1, count, 1))
        + _full(b"stsc", struct.pack(">IIII", 1, 1, count, 1))
        + _full(b"stsz", struct.pack(">II", 1, count))
        + _full(b"stco", struct.pack(">II", 1, 40)),
    )
    where = _box(b"dinf", _full(b"dref", struct.pack(">I", 1), _full(b"url ")))
    media = _full(b"mdhd", struct.pack(">IIIIHH", 0, 0, 1000, count, 0, 0))
    media += _full(b"hdlr", b"\0" * 4 + b"vide" + b"\0" * 13)
    media += _box(b"minf", _full(b"vmhd", b"\0" * 8) + where + table)
    track = _box(b"trak", _full(b"tkhd", b"\0" * 80) + _box(b"mdia", media))
    head = _full(b"mvhd", struct.pack(">IIII", 0, 0, 1000, count) + b"\0" * 80)
    return ftyp + _box(b"moov", head + track) + _box(b"mdat", b"x" * 100)


def turned_quarter(mp4: bytes) -> bytes:
    """The video as a phone held upright writes it: frames stored sideways, and a matrix that turns them by 90°."""
    place = mp4.index(b"tkhd") + 4 + 40
    upright = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    assert mp4[place : place + 36] == upright
    turned = struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000)
    return mp4[:place] + turned + mp4[place + 36 :]


def with_cover(kind: str) -> bytes:
    """An audio with a cover picture, as music shops sell them."""
    source, target = io.BytesIO(audio(kind)), io.BytesIO()
    with av.open(source) as read, av.open(target, "w", format=AUDIOS[kind][1]) as out:
        song = out.add_stream_from_template(read.streams.audio[0])
        cover = out.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 16, 16, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        out.mux(cover.encode(av.VideoFrame(16, 16, "yuvj420p")))
        out.mux(cover.encode())
        for packet in read.demux(read.streams.audio[0]):
            if packet.size:
                packet.stream = song
                out.mux(packet)
    return target.getvalue()


def _hum(out: Any, stream: Any, seconds: float) -> None:
    for start in range(0, int(seconds * AUDIO_RATE), 1024):
        frame = av.AudioFrame(format=stream.format.name, layout="stereo", samples=1024)
        frame.sample_rate, frame.pts = AUDIO_RATE, start
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        out.mux(stream.encode(frame))
    out.mux(stream.encode())


def _box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body) + 8) + kind + body


def _full(kind: bytes, *parts: bytes) -> bytes:
    return _box(kind, b"\0" * 4 + b"".join(parts))
