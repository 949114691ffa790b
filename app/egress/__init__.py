"""The guarded way out to addresses that callers or the upstream chose; it refuses whatever is not public.

Every hop, the first and each redirect, passes the same two gates: its *form* (`form.py`, nothing resolved)
and its *addresses* (`resolver.CheckedResolver`, which hands aiohttp exactly the addresses it has checked, so
that a name cannot answer differently between the check and the call).
"""

from app.egress.errors import EgressError, EgressFailed, EgressRefused, NoConnection, TimedOut
from app.egress.fetch import Download, Egress, Posted
from app.egress.form import LONGEST_URL, BadFormError, check_url_form, spell_url

__all__ = [
    "LONGEST_URL",
    "BadFormError",
    "Download",
    "Egress",
    "EgressError",
    "EgressFailed",
    "EgressRefused",
    "NoConnection",
    "Posted",
    "TimedOut",
    "check_url_form",
    "spell_url",
]
