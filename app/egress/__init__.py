"""The guarded way out to addresses that callers or the upstream chose; it refuses whatever is not public.

Every hop, the first and each redirect, passes the same two gates: its *form* (`form.py`, nothing resolved)
and its *addresses* (`resolver.CheckedResolver`, which hands aiohttp exactly the addresses it has checked, so
that a name cannot answer differently between the check and the call).
"""

from app.egress.client import Download, Egress, PostResult
from app.egress.errors import EgressConnectError, EgressError, EgressFailed, EgressForbidden, EgressTimeout
from app.egress.urls import LONGEST_URL, InvalidUrl, normalize_url, validate_url

__all__ = [
    "LONGEST_URL",
    "Download",
    "Egress",
    "EgressConnectError",
    "EgressError",
    "EgressFailed",
    "EgressForbidden",
    "EgressTimeout",
    "InvalidUrl",
    "PostResult",
    "normalize_url",
    "validate_url",
]
