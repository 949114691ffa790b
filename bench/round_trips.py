"""A proxy between a process and MySQL that counts the commands. One command is one round trip.

It counts on the wire, so the server's settings and the queries of other processes do not matter.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from sqlalchemy.engine import make_url

QUERY = 0x03
NAMES = {0x01: "QUIT", 0x0E: "PING", 0x16: "PREPARE", 0x17: "EXECUTE", 0x19: "CLOSE", 0x1F: "RESET"}


@dataclass
class CountedConnection:
    """`url` leads through the proxy. `counts` are the commands so far, with queries by their first word."""

    url: str
    counts: Counter[str] = field(default_factory=Counter)

    def per(self, number: int) -> tuple[float, str]:
        """Round trips for each of `number` pieces of work: the total, and by kind."""
        kinds = " + ".join(f"{count / number:.2f} {name}" for name, count in self.counts.most_common())
        return self.counts.total() / number, kinds


@asynccontextmanager
async def count_commands(database_url: str) -> AsyncIterator[CountedConnection]:
    url = make_url(database_url)
    counted = CountedConnection("")

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(url.host, url.port or 3306)
        back = asyncio.create_task(_pour(far_reader, writer))
        await _pour_counting(reader, far_writer, counted.counts)
        await asyncio.wait([back], timeout=1)
        back.cancel()

    server = await asyncio.start_server(pass_on, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    counted.url = url.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
    try:
        yield counted
    finally:
        server.close()


async def _pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(65_536):
        writer.write(chunk)
    writer.close()


async def _pour_counting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, counts: Counter[str]) -> None:
    """Reads packets: 3 bytes of length, 1 of sequence number. Sequence number 0 starts a new command."""
    try:
        while True:
            head = await reader.readexactly(4)
            body = await reader.readexactly(int.from_bytes(head[:3], "little"))
            if head[3] == 0:
                counts[_name(body)] += 1
            writer.write(head + body)
    except (asyncio.IncompleteReadError, OSError):
        writer.close()


def _name(command: bytes) -> str:
    if command[0] == QUERY:
        return command[1:40].split(None, 1)[0].decode(errors="replace").upper()
    return NAMES.get(command[0], hex(command[0]))
