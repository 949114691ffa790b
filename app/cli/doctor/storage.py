"""Storage: a small picture is stored, read, fetched by its public link as a caller would, and deleted."""

import base64
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import httpx

from app.cli.doctor.checks import Check, Group, Outcome, close_quietly, describe
from app.cli.doctor.process import check_disk
from app.settings import Settings
from app.storage import ObjectStore, open_object_store

PICTURE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
"""A PNG of one pixel."""


@dataclass(frozen=True)
class _Opened:
    store: ObjectStore
    key: str


def storage_group(settings: Settings) -> Group[_Opened]:
    @asynccontextmanager
    async def use() -> AsyncIterator[_Opened]:
        opened = _Opened(open_object_store(settings), f"results/doctor-{secrets.token_hex(8)}.png")
        try:
            yield opened
        finally:
            await close_quietly(opened.store.delete(opened.key))

    async def check_storage_disk(_: _Opened) -> Outcome:
        return await check_disk(Path(url2pathname(urlsplit(settings.storage_location).path)), "results stay there")

    is_local = settings.storage_location.startswith("file:")
    write = "Check STORAGE_URL and the STORAGE_ settings, and that the key may write below the prefix."
    if is_local:
        write = "Let the user of the processes write to the folder of STORAGE_URL."
    return Group(
        use,
        [
            Check("storage write", _check_write, write, is_required=True),
            Check("storage read", _check_read, "Let the key read below the prefix."),
            Check("storage link", _check_link, "Check STORAGE_PUBLIC_URL or PUBLIC_URL, and who may read the bucket."),
            Check("storage delete", _check_delete, "Let the key delete below the prefix."),
            *([Check("storage disk", check_storage_disk, write)] if is_local else []),
        ],
    )


async def _check_write(opened: _Opened) -> Outcome:
    await opened.store.put(opened.key, PICTURE, "image/png")
    return Outcome("ok", "a small picture was stored under results/")


async def _check_read(opened: _Opened) -> Outcome:
    stored = await opened.store.open(opened.key)
    content = b"" if stored is None else b"".join([chunk async for chunk in stored.content])
    if content != PICTURE:
        return Outcome("failed", "the stored picture reads back differently", "Check what stands before the storage.")
    return Outcome("ok", "it reads back as it was stored")


async def _check_link(opened: _Opened) -> Outcome:
    """As a caller sees it: by plain HTTP, without our key."""
    url = opened.store.public_url(opened.key)
    base = url.removesuffix(opened.key)
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=httpx.Timeout(5), follow_redirects=True) as client:
            answer = await client.get(url)
    except httpx.HTTPError as error:
        if opened.store.is_local and isinstance(error, httpx.ConnectError):
            text = f"nothing answers at {base}, where the API serves the results"
            return Outcome("warning", text, "Start `gateway serve`, check PUBLIC_URL, and run this again.")
        return Outcome("failed", f"{base}: {describe(error)}", "Check STORAGE_PUBLIC_URL, DNS and the certificate.")
    if answer.status_code != httpx.codes.OK:
        remedy = "Let everybody read results/* and uploads/* below the prefix, and check STORAGE_PUBLIC_URL."
        if opened.store.is_local:
            remedy = "Let PUBLIC_URL lead to an API process that has the same folder as STORAGE_URL."
        return Outcome("failed", f"callers get HTTP {answer.status_code} at {base}", remedy)
    if answer.content != PICTURE:
        return Outcome("failed", f"callers get something else at {base}", "Check what STORAGE_PUBLIC_URL leads to.")
    return Outcome("ok", f"callers can read it at {base}")


async def _check_delete(opened: _Opened) -> Outcome:
    await opened.store.delete(opened.key)
    if await opened.store.exists(opened.key):
        return Outcome("failed", "the picture is still there after it was deleted", "Let the key delete.")
    return Outcome("ok", "it was deleted")
