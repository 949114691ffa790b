"""Errors of outgoing requests. Their texts are for logs and never contain the path or query of a URL."""


class EgressError(Exception):
    """An outgoing request was refused or failed."""


class EgressForbidden(EgressError):
    """The URL or its address is not allowed. One text for every cause, so that nobody can map our network."""

    def __init__(self) -> None:
        super().__init__("the address is refused")


class EgressFailed(EgressError):
    """The server of an allowed URL did not deliver. `status` is its HTTP status, or None without a response."""

    def __init__(self, reason: str, status: int | None = None) -> None:
        self.reason = reason
        self.status = status
        super().__init__(reason)


class EgressConnectError(EgressFailed):
    """The host name does not resolve, or the host refuses the connection."""


class EgressTimeout(EgressFailed):
    """The request did not finish in time."""
