"""The API keys of the user, as `gateway.keys`."""

from collections.abc import Awaitable, Callable
from typing import Any, Unpack, cast

from gateway_client.shapes import Key, KeyFields, KeyPage, NewKey, Rotation

PATH = "/user/keys"


class Keys:
    """The credential must be a `Login` or a JWT: an API key cannot make keys.

    What creates a key is never retried. After a lost response, look it up in `list`.
    """

    def __init__(self, request: Callable[..., Awaitable[Any]]) -> None:
        self._request = request

    async def list(self, *, page: int = 1, size: int = 10, with_revoked: bool = False) -> KeyPage:
        """One page of the keys, the newest first."""
        query = f"?page={page}&size={size}&withRevoked={str(with_revoked).lower()}"
        return cast(KeyPage, await self._request("GET", PATH + query))

    async def create(self, **fields: Unpack[KeyFields]) -> NewKey:
        """A new key. Only this answer has its text, in `apiKey`. Missing fields limit nothing."""
        return cast(NewKey, await self._request("POST", PATH, json=fields, once=True))

    async def change(self, key_id: int, **fields: Unpack[KeyFields]) -> Key:
        """Changes the given fields. None removes a limit."""
        return cast(Key, await self._request("POST", f"{PATH}/{key_id}", json=fields))

    async def rotate(self, key_id: int, *, overlap_hours: int = 24) -> Rotation:
        """A new key in place of this one, which stays valid for the overlap. Both share one budget."""
        body = {"overlapHours": overlap_hours}
        return cast(Rotation, await self._request("POST", f"{PATH}/{key_id}/rotate", json=body, once=True))

    async def revoke(self, key_id: int) -> Key:
        """Ends the key at once."""
        return cast(Key, await self._request("POST", f"{PATH}/{key_id}/revoke"))
