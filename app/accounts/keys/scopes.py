"""What an API key may do: its scopes, and the words of older keys."""

from collections.abc import Iterable

KEY_SCOPES = ("tasks:submit", "tasks:read", "points:read", "files:write", "webhooks")
"""What users give their keys. A new key has all of them, if nothing else is said."""
ADMIN_SCOPE = "admin"
"""Never granted by default, and effective only while the key's user is an admin."""
FORMER_SCOPES: dict[str, tuple[str, ...]] = {
    "tasks": ("tasks:submit", "tasks:read", "files:write", "webhooks"),
    "points": ("points:read",),
}
"""The words of keys that older versions created. `points` also allows to redeem codes, which no new scope does."""


def expand_scopes(scopes: Iterable[str]) -> tuple[str, ...]:
    """The scopes of a stored key. A former word stays beside the scopes that it means."""
    expanded: dict[str, None] = {}
    for scope in scopes:
        expanded |= dict.fromkeys((scope, *FORMER_SCOPES.get(scope, ())))
    return tuple(expanded)
