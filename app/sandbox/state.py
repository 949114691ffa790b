"""What one sandbox remembers, and how a route reaches it and checks the key."""

import hmac
from dataclasses import dataclass, field

import anyio
from fastapi import HTTPException, Request

from app.sandbox.jobs.job_store import JobStore
from app.sandbox.media.file_store import FileStore
from app.sandbox.request_log import Entry, RequestLog
from app.sandbox.rules.rule_set import RuleSet

ENTRY = "sandbox.entry"
MAX_DRAWING_THREADS = 4


@dataclass(slots=True)
class SandboxState:
    """Everything the sandbox remembers. One per application; all of it is bounded."""

    api_key: str
    signing_secret: str
    public_url: str
    seconds_scale: float
    jobs: JobStore = field(default_factory=JobStore)
    control: RuleSet = field(default_factory=RuleSet)
    request_log: RequestLog = field(default_factory=RequestLog)
    file_store: FileStore = field(default_factory=FileStore)
    draw_limiter: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(MAX_DRAWING_THREADS))


def get_state(request: Request) -> SandboxState:
    state: SandboxState = request.app.state.sandbox
    return state


def get_entry(request: Request) -> Entry:
    """This request's entry in the request log."""
    entry: Entry = request.scope[ENTRY]
    return entry


def get_origin(request: Request) -> str:
    """Scheme, host and port of the URLs handed out: `public_url`, or the origin that the request came to."""
    return get_state(request).public_url or str(request.base_url).rstrip("/")


async def require_key(request: Request) -> None:
    """Accepts `Authorization: Bearer <key>`; everything else gets SEE2AI's own 401."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    expected = get_state(request).api_key.encode()
    if scheme.lower() != "bearer" or not hmac.compare_digest(key.strip().encode(), expected):
        if ENTRY in request.scope:
            get_entry(request).outcome = "refused"
        raise HTTPException(401, "Invalid API key")
