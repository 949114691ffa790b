"""The guarded way out to addresses that callers or the upstream chose; it refuses whatever is not public.

Every hop, the first and each redirect, passes the same two gates: its *form* (`form.py`, nothing resolved)
and its *addresses* (`fetch.CheckedResolver`, which hands aiohttp exactly the addresses it has checked, so
that a name cannot answer differently between the check and the call).
"""

from app.egress.fetch import Download, Egress, EgressError, EgressFailed, EgressRefused
from app.egress.form import check_url_form

__all__ = ["Download", "Egress", "EgressError", "EgressFailed", "EgressRefused", "check_url_form"]
