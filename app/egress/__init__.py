"""HTTP requests to URLs that callers or SEE2AI chose. Addresses that are not public are refused (SSRF protection).

Every request and every redirect passes two checks. `urls.py` checks the URL without a DNS query.
`resolver.CheckedResolver` checks the resolved addresses and passes exactly these to aiohttp, so a host name cannot
resolve to another address after the check.
"""

from app.egress.client import Download, Egress, PostResult
from app.egress.errors import EgressConnectError, EgressError, EgressFailed, EgressForbidden, EgressTimeout
from app.egress.urls import MAX_URL_LENGTH, InvalidUrl, escape_url, normalize_url, validate_url

__all__ = [
    "MAX_URL_LENGTH",
    "Download",
    "Egress",
    "EgressConnectError",
    "EgressError",
    "EgressFailed",
    "EgressForbidden",
    "EgressTimeout",
    "InvalidUrl",
    "PostResult",
    "escape_url",
    "normalize_url",
    "validate_url",
]
