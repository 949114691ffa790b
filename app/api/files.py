"""`/files/...`: results kept in `file://` storage, served by the gateway itself. Elsewhere the bucket serves them."""

from fastapi import APIRouter, Response
from starlette.responses import StreamingResponse

from app.api.deps import AnyRuntime
from app.errors import NotFound, Unavailable
from app.storage import StorageError

router = APIRouter(tags=["文件"])

# Nothing a browser would run is ever served: no SVG, no HTML, and `nosniff` on every answer.
TYPES = {
    "jpg": "image/jpeg",
    "png": "image/png",
    "webp": "image/webp",
    "gif": "image/gif",
    "mp4": "video/mp4",
}
LONGEST_KEY = 200  # ours have about 70; a file system refuses names above 255
PERMANENT = {"Cache-Control": "public, max-age=31536000, immutable"}


@router.get("/files/{key:path}", summary="读取结果文件", response_class=Response)
@router.head("/files/{key:path}", include_in_schema=False)
async def get_file(key: str, runtime: AnyRuntime) -> Response:
    content_type = TYPES.get(key.rpartition(".")[2])
    if content_type is None or len(key) > LONGEST_KEY or not runtime.store.is_local:
        raise NotFound("文件不存在")
    try:
        found = await runtime.store.open(key)
    except StorageError as error:
        raise Unavailable from error
    if found is None:
        raise NotFound("文件不存在")
    headers = PERMANENT | {"Content-Length": str(found.size)}
    return StreamingResponse(found.content, media_type=content_type, headers=headers)
