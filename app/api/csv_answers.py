"""Answers of CSV for download, whole or in pieces. They are not kept by caches."""

from collections.abc import AsyncIterator
from typing import Any

from fastapi import Response
from starlette.responses import StreamingResponse

from app.reports.csv_text import BOM, CSV_TYPE

CSV_CONTENT: dict[int | str, dict[str, Any]] = {200: {"content": {"text/csv": {"schema": {"type": "string"}}}}}
"""For the OpenAPI document of a route that also answers CSV."""


def csv_answer(name: str, lines: str) -> Response:
    return Response((BOM + lines).encode("utf-8", "replace"), media_type=CSV_TYPE, headers=_headers(name))


def csv_stream(name: str, pieces: AsyncIterator[bytes]) -> Response:
    """The next piece is read when the caller has read most of the pieces before."""
    return StreamingResponse(pieces, media_type=CSV_TYPE, headers=_headers(name))


def _headers(name: str) -> dict[str, str]:
    return {"Cache-Control": "no-store", "Content-Disposition": f'attachment; filename="{name}.csv"'}
