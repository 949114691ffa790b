"""How a stranger's address fails us. Texts are for logs and never hold a URL's path or query."""


class EgressError(Exception):
    """Something could not be fetched or sent."""


class EgressForbidden(EgressError):
    """Not an address we call. One text for every cause, so that nobody maps our network by asking."""

    def __init__(self) -> None:
        super().__init__("the address is refused")


class EgressFailed(EgressError):
    """An address we may call did not deliver; `status` is the HTTP status where there was one."""

    def __init__(self, reason: str, status: int | None = None) -> None:
        self.reason = reason
        self.status = status
        super().__init__(reason)


class EgressConnectError(EgressFailed):
    """The name has no address, or nobody takes the call there."""


class EgressTimeout(EgressFailed):
    """Not all of it came in the time it was given."""
