"""`POST /user/files/upload`: stores an image, video or audio file and answers its link, for `imageUrl` and others."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Depends, Request
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from app.aio import counted
from app.api.access.callers import Access, RequestContext
from app.api.bodies import codec_for
from app.api.routing import DirectRoute
from app.api.schemas import Envelope, UploadResponse
from app.errors import InvalidParameter, PayloadTooLarge, RateLimited, Unavailable, UnsupportedMedia
from app.files.uploads import BUSY, FIELD, MAX_UPLOAD_BYTES, TOO_LARGE, check_upload, store_upload

log = structlog.get_logger()

PATH = "/user/files/upload"
BODY_LIMIT: dict[str, tuple[int, str | None]] = {PATH: (MAX_UPLOAD_BYTES + 100_000, TOO_LARGE)}
"""The limit includes the form around the file and extra fields."""
MAX_EXTRA_FIELDS = 20
MAX_EXTRA_BYTES = 10_000

MAX_UPLOADS = 64
MAX_UPLOADS_PER_USER = 16  # a task may have 14 references, and a page may upload all of them at once


class UploadPlaces:
    """Bounds the uploads at the same time in this process, from the first byte of the body to the answer."""

    def __init__(self) -> None:
        self._taken: Counter[int] = Counter()

    @contextmanager
    def take(self, user_id: int) -> Iterator[None]:
        """Takes one place while the block runs. Raises RateLimited or Unavailable."""
        if self._taken[user_id] >= MAX_UPLOADS_PER_USER:
            raise RateLimited(f"同时上传的文件过多，最多 {MAX_UPLOADS_PER_USER} 个", retry_after_seconds=5)
        if self._taken.total() >= MAX_UPLOADS:
            raise Unavailable(BUSY, retry_after_seconds=10)
        with counted(self._taken, user_id):
            yield


router = APIRouter(route_class=DirectRoute, tags=["文件"])

FORM: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": [FIELD],
                "properties": {FIELD: {"type": "string", "format": "binary", "description": "一个文件，不超过 50 MB"}},
            }
        }
    },
}


@router.post(PATH, summary="上传参考图片、视频或音频", openapi_extra={"requestBody": FORM})
async def upload(
    request: Request, context: Annotated[RequestContext, Depends(Access(scope="files:write", limit="upload"))]
) -> Envelope[UploadResponse]:
    """Reads the form itself, because FastAPI's errors name neither the field nor the limit."""
    with request.app.state.upload_places.take(context.user_id):
        await check_upload(context.runtime, context.user_id)
        form = await _read_form(request)
        try:
            file = _get_single_file(form)
            stored = await store_upload(context.runtime, context.user_id, file.file, file.size or 0)
        finally:
            await form.close()
    return Envelope(
        data=UploadResponse(
            url=stored.url,
            type=stored.type,
            bytes=stored.size_bytes,
            kind=stored.kind,
            width=stored.width,
            height=stored.height,
            durationSeconds=stored.duration_seconds,
        )
    )


async def _read_form(request: Request) -> FormData:
    """The form. Starlette writes the file to an unnamed temporary file, which disappears when it is closed."""
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != "multipart/form-data":
        raise UnsupportedMedia("请求体须为 multipart/form-data，文件放在 file 字段")
    try:
        codec_for(content_type)
        return await request.form(max_files=1, max_fields=MAX_EXTRA_FIELDS, max_part_size=MAX_EXTRA_BYTES)
    except HTTPException as error:
        if error.detail.startswith("Too many files"):
            raise InvalidParameter(FIELD, "只能有一个文件") from None
        raise _broken_form(error.detail) from None
    except (ValueError, UnsupportedMedia) as error:  # not in the charset that it declares, or in an unknown one
        raise _broken_form(str(error)) from None
    except ClientDisconnect:  # nobody receives the response
        raise InvalidParameter(FIELD, "上传中断") from None
    except OSError as error:  # the disk of the temporary file, or too many open files
        log.warning("storage_failed", error=str(error))
        raise Unavailable from error


def _broken_form(reason: str) -> InvalidParameter:
    log.info("upload_refused", reason=f"form: {reason[:200]}")
    return InvalidParameter(FIELD, "不是有效的 multipart/form-data 表单")


def _get_single_file(form: FormData) -> UploadFile:
    file = form.get(FIELD)
    if not file or (isinstance(file, UploadFile) and not file.size):
        raise InvalidParameter(FIELD, "不能为空")
    if not isinstance(file, UploadFile):
        raise InvalidParameter(FIELD, "须为文件，表单中缺少 filename")
    if (file.size or 0) > MAX_UPLOAD_BYTES:
        raise PayloadTooLarge(TOO_LARGE)
    return file
