"""The baseline of a push without a gateway: each message that Redis publishes goes to every WebSocket.

python -m bench.limits.push PORT
"""

import asyncio
import os
import sys

import uvloop
from redis.asyncio import Redis
from websockets.asyncio.server import ServerConnection, serve

CHANNEL = "bench:push"


async def main() -> None:
    sockets: set[ServerConnection] = set()

    async def take(socket: ServerConnection) -> None:
        sockets.add(socket)
        await socket.wait_closed()
        sockets.discard(socket)

    redis: Redis = Redis.from_url(os.environ["REDIS_URL"])
    async with redis.pubsub(ignore_subscribe_messages=True) as channel:
        await channel.subscribe(CHANNEL)
        async with serve(take, "127.0.0.1", int(sys.argv[1]), compression=None):
            async for message in channel.listen():
                text = message["data"].decode()
                await asyncio.gather(*(socket.send(text) for socket in sockets))


if __name__ == "__main__":
    uvloop.run(main())
