"""The open connections of this process, and which of them make room when the process may open no more files.

A client without a credential can open many connections and leave them. Callers who do send requests must be served
all the same.
"""

from typing import Protocol

from app.runtime import max_connections


class Connection(Protocol):
    """A connection that can be ended at once."""

    def replace(self) -> None: ...


class OpenConnections:
    """All connections, and those that wait for their clients, in the order in which the clients last did something."""

    def __init__(self) -> None:
        self._open: set[Connection] = set()
        self._waiting: dict[Connection, None] = {}

    def add(self, connection: Connection, descriptor: int) -> bool:
        """Adds a new connection. Others may be replaced for it; False where none can be, and it must be refused.

        `descriptor` is the number of its file. The kernel gives the lowest free one, so a high number means that many
        files are open, whatever opened them.
        """
        self._open.add(connection)
        limit = max_connections()
        excess = max(len(self._open) - limit, 1 if descriptor >= limit else 0)
        for _ in range(excess):
            first = next(iter(self._waiting), None)
            if first is None:
                return False
            self.discard(first)
            first.replace()
        return True

    def discard(self, connection: Connection) -> None:
        """The connection ends, or another protocol has it now."""
        self._open.discard(connection)
        self._waiting.pop(connection, None)

    def begin_wait(self, connection: Connection) -> None:
        """The client is to act next: to send or to read. The connection stands last in the order then."""
        self._waiting.pop(connection, None)
        if connection in self._open:
            self._waiting[connection] = None

    def end_wait(self, connection: Connection) -> None:
        """The gateway is to act next."""
        self._waiting.pop(connection, None)


CONNECTIONS = OpenConnections()
"""Of the whole process, like its files."""
