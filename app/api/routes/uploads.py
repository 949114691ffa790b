"""`POST /user/files/upload`: a caller's own picture, film or sound becomes a link, for `imageUrl` and the like."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from app.api.access import UploadDesk
from app.api.schemas import Envelope, UploadResponse
from app.errors import InvalidParameter, PayloadTooLarge, Unavailable, UnsupportedMedia
from app.files.uploads import FIELD, MAX_UPLOAD_BYTES, TOO_LARGE, store_upload

PATH = "/user/files/upload"
BODY_LIMIT = {PATH: (MAX_UPLOAD_BYTES + 100_000, TOO_LARGE)}
"""With the form around the file, and fields that nobody asked for."""
MAX_EXTRA_FIELDS = 20
MAX_EXTRA_BYTES = 10_000

router = APIRouter(tags=["文件"])

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
async def upload(request: Request, context: UploadDesk) -> Envelope[UploadResponse]:
    """The form is read here and not by FastAPI, whose own errors name neither the field nor the limit."""
    form = await _read_form(request)
    try:
        stored = await store_upload(context.runtime, _get_single_file(form).file)
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
    """Starlette writes a file to disk as it comes, without a name, so that nothing stays whatever happens."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "multipart/form-data":
        raise UnsupportedMedia("请求体须为 multipart/form-data，文件放在 file 字段")
    try:
        return await request.form(max_files=1, max_fields=MAX_EXTRA_FIELDS, max_part_size=MAX_EXTRA_BYTES)
    except HTTPException as error:
        if error.status_code == PayloadTooLarge.status:
            raise PayloadTooLarge(TOO_LARGE) from None
        if error.detail.startswith("Too many files"):
            raise InvalidParameter(FIELD, "只能有一个文件") from None
        raise InvalidParameter(FIELD, "不是有效的 multipart/form-data 表单") from None
    except ValueError:  # a charset that Python knows and the form is not in
        raise InvalidParameter(FIELD, "不是有效的 multipart/form-data 表单") from None
    except ClientDisconnect:  # nobody hears it
        raise InvalidParameter(FIELD, "上传中断") from None
    except OSError as error:  # no room on our disk
        raise Unavailable from error


def _get_single_file(form: FormData) -> UploadFile:
    file = form.get(FIELD)
    if not file or (isinstance(file, UploadFile) and not file.size):
        raise InvalidParameter(FIELD, "不能为空")
    if not isinstance(file, UploadFile):
        raise InvalidParameter(FIELD, "须为文件，表单中缺少 filename")
    if (file.size or 0) > MAX_UPLOAD_BYTES:
        raise PayloadTooLarge(TOO_LARGE)
    return file
