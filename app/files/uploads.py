"""Stores a caller's image, video or audio file under a new key, so that a task can use it.

The bytes decide the type of the file; the caller's claims are ignored. GIF, WebP, AVIF and HEIC are converted to JPEG
or PNG, which SEE2AI accepts. Every other file is stored unchanged, with the EXIF data of a JPEG.
"""

import asyncio
import contextlib
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
from app.files.upload_records import KEY_DIGITS, MEGABYTE, check_allowance, forget_upload, record_upload
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
MAX_INSPECTION_SECONDS = 60.0
"""For the wait for a slot and the work itself. Most proxies wait as long for an answer."""
BUSY = "服务繁忙: 正在处理的文件过多，请稍后重试"
NO_SPACE = "存储空间不足，暂时不能上传，请稍后重试"


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


async def check_upload(runtime: Runtime, user_id: int, size_bytes: int = 0) -> None:
    """Raises RateLimited if the user has uploaded enough for a day. Raises Unavailable if the disk is almost full."""
    await check_allowance(runtime.database, user_id, size_bytes, runtime.settings.upload_mb_per_day)
    if not await runtime.store.has_space(size_bytes, runtime.settings.storage_reserve_mb * MEGABYTE):
        log.warning("storage_almost_full", reserve_mb=runtime.settings.storage_reserve_mb)
        raise Unavailable(NO_SPACE, retry_after_seconds=300)


async def store_upload(runtime: Runtime, user_id: int, file: IO[bytes], size_bytes: int) -> Upload:
    """Inspects the file, converts it if needed, and stores it.

    Raises InvalidParameter, UnsupportedMedia, PayloadTooLarge or RateLimited. Raises Unavailable if the storage or our
    disk fails, or if too many files are inspected.
    """
    await check_upload(runtime, user_id, size_bytes)
    try:
        with tempfile.TemporaryDirectory(prefix="gateway-") as directory:
            path = Path(directory) / "original"
            await anyio.to_thread.run_sync(_copy, file, path)
            try:
                async with asyncio.timeout(MAX_INSPECTION_SECONDS):
                    info, path = await _inspect_or_convert(path)
            except TimeoutError:
                raise Unavailable(BUSY, retry_after_seconds=10) from None
            size_bytes = path.stat().st_size
            if size_bytes > MAX_UPLOAD_BYTES:
                raise PayloadTooLarge(CONVERTED_TOO_LARGE)
            key = f"uploads/{datetime.now(UTC):%Y/%m}/{secrets.token_hex(KEY_DIGITS // 2)}.{info.ext}"
            await _store(runtime, user_id, key, path, size_bytes, info.mime)
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


async def _store(runtime: Runtime, user_id: int, key: str, path: Path, size_bytes: int, mime: str) -> None:
    await record_upload(runtime.database, user_id, key, size_bytes, runtime.settings.upload_mb_per_day)
    try:
        await runtime.store.put_file(key, path, mime)
    except (StorageError, OSError):
        with contextlib.suppress(Unavailable):  # the row expires
            await forget_upload(runtime.database, key)
        raise


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
