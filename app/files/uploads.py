"""A caller's own picture, film or sound, to be named in a task: recognised by its bytes and stored under a new key.

Nothing is believed of what the caller says about it. GIF, WebP, AVIF and HEIC become JPEG or PNG, which SEE2AI is
sure to take; everything else is kept to the byte, a JPEG's EXIF included.
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
KNOWN = "JPEG、PNG、GIF、WebP、HEIC、AVIF 图片，MP4、MOV、WebM 视频，或 MP3、WAV、M4A、AAC 音频"
UNKNOWN = f"不支持的内容类型: file 须为 {KNOWN}"
BROKEN = "已损坏、不完整或无法解码"
OVERSIZED = "尺寸过大: 图片和视频不超过 6400 万像素，视频每边不超过 8192 像素，时长不超过 4 小时"

KEPT_IMAGES = frozenset({"image/jpeg", "image/png"})
CONVERTED_IMAGES = frozenset({"image/gif", "image/webp", "image/avif", "image/heic"})
AUDIO_VIDEO = frozenset(
    {"video/mp4", "video/quicktime", "video/webm", "audio/mpeg", "audio/mp4", "audio/wav", "audio/aac"}
)
KINDS = {ImageInfo: "image", VideoInfo: "video", AudioInfo: "audio"}
KEY_BYTES = 20  # 160 random bits: whoever has the link may read the file


@dataclass(frozen=True)
class Upload:
    """What is stored under `url`, which may not be what was sent; sizes are None where they do not apply."""

    url: str
    type: str
    size_bytes: int
    kind: str
    width: int | None
    height: int | None
    duration_seconds: float | None


async def store_upload(runtime: Runtime, file: IO[bytes]) -> Upload:
    """Raises InvalidParameter, UnsupportedMedia, PayloadTooLarge; Unavailable while storage or our disk will not."""
    try:
        with tempfile.TemporaryDirectory(prefix="gateway-") as directory:
            path = Path(directory) / "sent"
            await anyio.to_thread.run_sync(_copy, file, path)
            found, path = await _identify_media(path)
            size_bytes = path.stat().st_size
            if size_bytes > MAX_UPLOAD_BYTES:
                raise PayloadTooLarge(CONVERTED_TOO_LARGE)
            key = f"uploads/{datetime.now(UTC):%Y/%m}/{secrets.token_hex(KEY_BYTES)}.{found.ext}"
            await runtime.store.put_file(key, path, found.mime)
    except (StorageError, OSError) as error:  # OSError: this machine's own disk, where the file passes through
        log.warning("storage_fault", error=str(error))
        raise Unavailable from error
    return Upload(
        url=runtime.store.public_url(key),
        type=found.mime,
        size_bytes=size_bytes,
        kind=KINDS[type(found)],
        width=getattr(found, "width", None),
        height=getattr(found, "height", None),
        duration_seconds=getattr(found, "duration_seconds", None),
    )


async def _identify_media(path: Path) -> tuple[ImageInfo | VideoInfo | AudioInfo, Path]:
    """What it is, and the file to be stored: itself, or what it was converted to."""
    with path.open("rb") as file:
        mime = media.sniff(file.read(media.START_BYTES))
    try:
        if mime in KEPT_IMAGES:
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
    raise UnsupportedMedia(UNKNOWN)


def _copy(file: IO[bytes], path: Path) -> None:
    """Readers in other processes want a file with a name, and Starlette's has none."""
    with path.open("xb") as named:
        shutil.copyfileobj(file, named, 256 * 1024)
