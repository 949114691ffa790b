"""`/files/...`: results kept in `file://` storage, served by the gateway itself. Elsewhere the bucket serves them."""

from typing import Annotated

from fastapi import APIRouter, Path, Response
from starlette.responses import StreamingResponse

from app.api.deps import RuntimeDep
from app.errors import NotFound

router = APIRouter(tags=["文件"])

# Nothing a browser would run is ever served: no SVG, no HTML, and `nosniff` on every answer.
TYPES = {
    "jpg": "image/jpeg",
    "png": "image/png",
    "webp": "image/webp",
    "gif": "image/gif",
    "mp4": "video/mp4",
}
PERMANENT = {"Cache-Control": "public, max-age=31536000, immutable"}


@router.api_route("/files/{key:path}", methods=["GET", "HEAD"], summary="读取结果文件", response_class=Response)
async def get_file(key: Annotated[str, Path(max_length=300)], runtime: RuntimeDep) -> Response:
    content_type = TYPES.get(key.rpartition(".")[2])
    if content_type is None or not runtime.store.is_local:
        raise NotFound("文件不存在")
    try:
        found = await runtime.store.open(key)
    except ValueError:
        found = None
    if found is None:
        raise NotFound("文件不存在")
    headers = PERMANENT | {"Content-Length": str(found.size)}
    return StreamingResponse(found.content, media_type=content_type, headers=headers)
