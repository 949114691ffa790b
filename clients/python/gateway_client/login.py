"""A log-in by user name and password. It is the credential of a `Gateway` and keeps its access token fresh."""

import asyncio
import time
from typing import Any

import httpx

from gateway_client.responses import GatewayError, read_response

REFRESH_EARLY_SECONDS = 60.0
REQUEST_SECONDS = 30.0


class Login:
    """`Gateway(url, Login(url, "name", "password"))`. One instance is one session, also for several requests at once.

    `code` is the code of the second factor, where the account has one. After the session has ended, the next request
    logs in again; with a second factor that raises SECOND_FACTOR_REQUIRED.
    """

    def __init__(self, base_url: str, username: str, password: str, *, code: str | None = None) -> None:
        self._base = base_url.rstrip("/")
        self._names = {"username": username, "password": password}
        self._code = code
        self._access, self._refresh, self._expires = "", "", 0.0
        self._lock = asyncio.Lock()

    async def __call__(self) -> str:
        """A valid access token. It logs in or refreshes where needed."""
        async with self._lock:
            if time.monotonic() >= self._expires:
                await self._renew()
            return self._access

    def forget(self, token: str) -> None:
        """Drops an access token that the gateway refused, so that the next call gets a new one."""
        if token == self._access:
            self._expires = 0.0

    async def log_out(self) -> None:
        """Ends the session at the gateway."""
        async with self._lock:
            refresh, self._refresh, self._expires = self._refresh, "", 0.0
        if refresh:
            await self._post("logout", {"refreshToken": refresh})

    async def _renew(self) -> None:
        if self._refresh:
            try:
                self._take(await self._post("refresh", {"refreshToken": self._refresh}))
            except GatewayError as error:
                if error.code != httpx.codes.UNAUTHORIZED:
                    raise
                self._refresh = ""  # the session has ended
            else:
                return
        code, self._code = self._code, None  # a code works once
        self._take(await self._post("login", self._names | ({"code": code} if code else {})))

    def _take(self, session: dict[str, Any]) -> None:
        self._access, self._refresh = session["accessToken"], session["refreshToken"]
        self._expires = time.monotonic() + max(session["expiresIn"] - REFRESH_EARLY_SECONDS, 1.0)

    async def _post(self, name: str, body: dict[str, Any]) -> Any:
        async with httpx.AsyncClient(timeout=REQUEST_SECONDS) as http:
            try:
                response = await http.post(f"{self._base}/user/auth/{name}", json=body)
            except httpx.RequestError as error:
                raise GatewayError(f"no response from the gateway: {error!r}", error_code="NETWORK") from error
        return read_response(response)
