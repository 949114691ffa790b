"""The desk: what one sandbox remembers, and how a request finds it and shows its key."""

import hmac
from dataclasses import dataclass, field

import anyio
from fastapi import HTTPException, Request

from app.sandbox.control import Control
from app.sandbox.jobs import JobBook
from app.sandbox.journal import Entry, Journal
from app.sandbox.shelf import Shelf

ENTRY = "sandbox.entry"
DRAWN_AT_ONCE = 4


@dataclass(slots=True)
class Desk:
    """Everything the sandbox remembers. One per application; all of it is bounded."""

    api_key: str
    signing_secret: str
    public_url: str
    seconds_scale: float
    jobs: JobBook = field(default_factory=JobBook)
    control: Control = field(default_factory=Control)
    journal: Journal = field(default_factory=Journal)
    shelf: Shelf = field(default_factory=Shelf)
    pens: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(DRAWN_AT_ONCE))


def get_desk(request: Request) -> Desk:
    desk: Desk = request.app.state.desk
    return desk


def get_entry(request: Request) -> Entry:
    """The journal's entry for this request."""
    entry: Entry = request.scope[ENTRY]
    return entry


def get_origin(request: Request) -> str:
    """Scheme, host and port of the URLs handed out: the one set, or the one the request came to."""
    return get_desk(request).public_url or str(request.base_url).rstrip("/")


async def require_key(request: Request) -> None:
    """Lets in whoever sends `Authorization: Bearer <key>`; everyone else gets SEE2AI's own 401."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    expected = get_desk(request).api_key.encode()
    if scheme.lower() != "bearer" or not hmac.compare_digest(key.strip().encode(), expected):
        if ENTRY in request.scope:
            get_entry(request).outcome = "refused"
        raise HTTPException(401, "Invalid API key")
