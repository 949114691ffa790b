"""Stores a caller's image, video or audio file under a new key, so that a task can use it.

The bytes decide the type of the file; the caller's claims are ignored. GIF, WebP, AVIF and HEIC are converted to JPEG
or PNG, which SEE2AI accepts. Every other file is stored unchanged, with the EXIF data of a JPEG.
"""

import secrets
import shutil
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import anyio.to_thread
import structlog

from app.errors import InvalidParameter, PayloadTooLarge, Unavailable, UnsupportedMedia
from app.files import media
from app.files.media import AudioInfo, ImageInfo, MediaError, OversizedError, VideoInfo
from app.runtime import Runtime
from app.storage import StorageError

log = structlog.get_logger()

FIELD = "file"
MAX_UPLOAD_BYTES = 50_000_000
TOO_LARGE = "请求内容过大: file 不能超过 50 MB"
CONVERTED_TOO_LARGE = "请求内容过大: file 转换后超过 50 MB"
UNSUPPORTED = (
    "不支持的内容类型: file 须为 JPEG、PNG、GIF、WebP、HEIC、AVIF 图片，MP4、MOV、WebM 视频，或 MP3、WAV、M4A、AAC 音频"
)
BROKEN = "已损坏、不完整或无法解码"
OVERSIZED = "尺寸过大: 图片和视频不超过 6400 万像素，视频每边不超过 8192 像素，时长不超过 4 小时"

UNCHANGED_IMAGES = frozenset({"image/jpeg", "image/png"})
CONVERTED_IMAGES = frozenset({"image/gif", "image/webp", "image/avif", "image/heic"})
AUDIO_VIDEO = frozenset(
    {"video/mp4", "video/quicktime", "video/webm", "audio/mpeg", "audio/mp4", "audio/wav", "audio/aac"}
)
KINDS = {ImageInfo: "image", VideoInfo: "video", AudioInfo: "audio"}
KEY_BYTES = 20  # 160 random bits, because anyone who knows the URL may read the file


@dataclass(frozen=True)
class Upload:
    """The stored file, which may be a conversion of the caller's file. A field that does not apply is None."""

    url: str
    type: str  # MIME
    size_bytes: int
    kind: str  # image, video or audio
    width: int | None
    height: int | None
    duration_seconds: float | None


async def store_upload(runtime: Runtime, file: IO[bytes]) -> Upload:
    """Inspects the file, converts it if needed, and stores it.

    Raises InvalidParameter, UnsupportedMedia or PayloadTooLarge. Raises Unavailable if the storage or our disk fails.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="gateway-") as directory:
            path = Path(directory) / "original"
            await anyio.to_thread.run_sync(_copy, file, path)
            info, path = await _inspect_or_convert(path)
            size_bytes = path.stat().st_size
            if size_bytes > MAX_UPLOAD_BYTES:
                raise PayloadTooLarge(CONVERTED_TOO_LARGE)
            key = f"uploads/{datetime.now(UTC):%Y/%m}/{secrets.token_hex(KEY_BYTES)}.{info.ext}"
            await runtime.store.put_file(key, path, info.mime)
    except (StorageError, OSError) as error:  # OSError: the disk with the temporary directory
        log.warning("storage_failed", error=str(error))
        raise Unavailable from error
    return Upload(
        url=runtime.store.public_url(key),
        type=info.mime,
        size_bytes=size_bytes,
        kind=KINDS[type(info)],
        width=getattr(info, "width", None),
        height=getattr(info, "height", None),
        duration_seconds=getattr(info, "duration_seconds", None),
    )


async def _inspect_or_convert(path: Path) -> tuple[ImageInfo | VideoInfo | AudioInfo, Path]:
    """The media information and the path of the file to store: the original, or its conversion."""
    with path.open("rb") as file:
        mime = media.sniff(file.read(media.START_BYTES))
    try:
        if mime in UNCHANGED_IMAGES:
            return await media.inspect_image(path), path
        if mime in CONVERTED_IMAGES:
            converted = path.with_name("converted")
            return await media.convert_image(path, converted), converted
        if mime in AUDIO_VIDEO:
            return await media.inspect_audio_video(path), path
    except OversizedError as error:
        log.info("upload_refused", reason=error.reason)
        raise InvalidParameter(FIELD, OVERSIZED) from None
    except MediaError as error:
        log.info("upload_refused", reason=error.reason)
        raise InvalidParameter(FIELD, BROKEN) from None
    raise UnsupportedMedia(UNSUPPORTED)


def _copy(file: IO[bytes], path: Path) -> None:
    """Copies the upload to a path, because the isolated process needs one and Starlette's file has none."""
    with path.open("xb") as copy:
        shutil.copyfileobj(file, copy, 256 * 1024)
