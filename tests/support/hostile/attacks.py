"""What one hostile user does to a gateway, in short forms: each attack runs for some seconds and says what came of it.

All traffic goes to one gateway on this machine, in bounded numbers, and every attack stops by itself.
"""

import asyncio
import contextlib
import io
import json
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
from aiohttp import web
from PIL import Image

from tests.support.processes.slow_names_node import HANGING

SUBMIT, LIST, QUOTE, UPLOAD = (
    "/user/ai/tasks/submit",
    "/user/ai/tasks/list",
    "/user/ai/tasks/quote",
    "/user/files/upload",
)
ENDPOINTS = "/user/webhooks/endpoints"
MODEL, IMAGE_MODEL, AUTO_MODEL = "sc_soraimg_text_1x1", "sc_soraimg_img2img_1x1", "sc_soraimg_img2img_auto"
WORD = "x" * 20_000
LINE = b"X-Header: " + b"y" * 1000 + b"\r\n"
MAX_HEAD_BYTES = 40_000_000
REFUSED = '[[sandbox: {"fail": 403}]]'
PENDING, MOVES = 40, 20


@dataclass
class Attacker:
    """The hostile user. `answers` counts statuses and errors; `facts` are what else an attack found."""

    origin: str
    headers: dict[str, str]
    seconds: float
    receiver_port: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    facts: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        limits = httpx.Limits(max_connections=None)
        self.client = httpx.AsyncClient(base_url=self.origin, timeout=20, trust_env=False, limits=limits)
        self.ends_at = time.monotonic() + self.seconds

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self.ends_at

    async def send(self, method: str, path: str, **content: Any) -> Any:
        """The answer's data, or None."""
        try:
            answer = await self.client.request(method, path, headers=self.headers, **content)
        except httpx.HTTPError as error:
            self.answers[type(error).__name__] += 1
            return None
        self.answers[str(answer.status_code)] += 1
        return answer.json()["data"] if answer.status_code == 200 else None

    async def submit(self, prompt: str, model: str = MODEL, **fields: Any) -> str | None:
        task = await self.send("POST", SUBMIT, json={"modelName": model, "prompt": prompt, **fields})
        return task and str(task["taskNo"])

    async def cancel(self, task_no: str | None) -> None:
        if task_no:
            await self.send("POST", f"/user/ai/tasks/{task_no}/cancel")

    async def submit_and_cancel(self, prompt: str, **fields: Any) -> None:
        await self.cancel(await self.submit(prompt, **fields))

    async def at_once(self, number: int, act: Callable[[int], Awaitable[Any]], pause_seconds: float = 0.2) -> None:
        """So many at once, again and again until the time is over."""
        while not self.is_over:
            await asyncio.gather(*[act(n) for n in range(number)])
            await asyncio.sleep(pause_seconds)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        address = urlsplit(self.origin)
        try:
            return await asyncio.wait_for(asyncio.open_connection(address.hostname, address.port), 5)
        except (OSError, TimeoutError) as error:
            self.answers[type(error).__name__] += 1
            return None


async def long_words(me: Attacker) -> None:
    """Prompts that are one word."""
    await me.at_once(10, lambda n: me.submit_and_cancel(f"{WORD[:-2]}{n:02d}"))


async def head_flood(me: Attacker) -> None:
    """Without a credential: header lines for ever, and one header that does not end."""
    for start, piece in ((b"GET / HTTP/1.1\r\nHost: x\r\n", LINE * 50), (b"GET / HTTP/1.1\r\nX-Long: ", b"z" * 50_000)):
        sent, opened = 0, await me.connect()
        if opened is None:
            continue
        _, writer = opened
        with contextlib.suppress(OSError, TimeoutError):
            writer.write(start)
            while sent < MAX_HEAD_BYTES and not me.is_over:
                writer.write(piece)
                sent += len(piece)
                await asyncio.wait_for(writer.drain(), 5)
            await asyncio.sleep(0.5)
        me.facts["largest_head"] = max(me.facts.get("largest_head", 0), sent)
        writer.close()


async def padded_links(me: Attacker) -> None:
    """Fields that are mostly blanks, then lists of them that nobody reads."""
    padded = "[" + " " * 970_000 + '"https://example.com/a.jpg"]'
    for _ in range(30):
        task = await me.send("POST", SUBMIT, json={"modelName": IMAGE_MODEL, "prompt": "padded", "imageUrl": padded})
        me.facts["largest_task"] = max(me.facts.get("largest_task", 0), len(json.dumps(task)))
        await me.cancel(task and task["taskNo"])
    credentials = "".join(f"{name}: {value}\r\n" for name, value in me.headers.items())
    request = f"GET {LIST}?size=100 HTTP/1.1\r\nHost: x\r\n{credentials}\r\n".encode()
    opened = [one for one in [await me.connect() for _ in range(10)] if one]
    for _, writer in opened:
        writer.write(request)
    await asyncio.sleep(max(me.ends_at - time.monotonic(), 1))
    for _, writer in opened:
        writer.transport.abort()


async def keywords(me: Attacker) -> None:
    """Searches through all of one's many long prompts."""
    await me.at_once(60, lambda n: me.send("GET", LIST, params={"keyword": f"nowhere {n}", "page": 50, "size": 100}))


async def bombs(me: Attacker) -> None:
    """Small files of large pictures."""
    bomb = webp_of_one_colour(8000, 8000)
    await me.at_once(14, lambda _: me.send("POST", UPLOAD, files={"file": ("a.webp", bomb)}))


async def refused_tasks(me: Attacker) -> None:
    """Tasks that SEE2AI refuses, each by itself, as it refuses a key or a balance."""
    await me.at_once(20, lambda n: me.submit(f"{REFUSED} {n}"), me.seconds)


async def silent_connections(me: Attacker) -> None:
    """Connections that say nothing, and requests that wait."""
    opened = [one for one in await asyncio.gather(*[me.connect() for _ in range(320)]) if one]
    task_no = await me.submit('[[sandbox: {"end": "never"}]]')
    waiting = [me.send("GET", f"/user/ai/tasks/{task_no}", params={"wait": 10}) for _ in range(60)]
    await asyncio.gather(*waiting)
    await asyncio.sleep(max(me.ends_at - time.monotonic(), 0))
    for _, writer in opened:
        writer.transport.abort()


async def uploads(me: Attacker) -> None:
    """Files that no task will use."""
    file = io.BytesIO()
    Image.frombytes("RGB", (600, 600), os.urandom(600 * 600 * 3)).save(file, "PNG")
    await me.at_once(6, lambda _: me.send("POST", UPLOAD, files={"file": ("a.png", file.getvalue())}))


async def moves(me: Attacker) -> None:
    """A webhook that moves, again and again, with many deliveries that wait for it."""
    posts: list[float] = []

    async def refuse(_request: web.Request) -> web.Response:
        posts.append(time.monotonic())
        return web.Response(status=500)

    app = web.Application()
    app.router.add_post("/{path}", refuse)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", me.receiver_port).start()
    url = f"http://127.0.0.1:{me.receiver_port}"
    endpoints = await me.send("GET", "/user/webhooks/endpoints")
    endpoint = (
        endpoints[0] if endpoints else await me.send("POST", "/user/webhooks/endpoints", json={"url": f"{url}/0"})
    )
    path = f"/user/webhooks/endpoints/{endpoint['id'] if endpoint else 0}"
    await me.send("POST", path, json={"enabled": True})
    for n in range(PENDING):
        await me.submit_and_cancel(f"pending {n}")
    while len(posts) < PENDING and not me.is_over:
        await asyncio.sleep(0.1)
    began = time.monotonic()
    for n in range(1, MOVES):
        await me.send("POST", path, json={"url": f"{url}/{n % 2}"})
        await asyncio.sleep(0.2)
    await asyncio.sleep(1)
    me.facts["posts_per_move"] = sum(at >= began for at in posts) / MOVES
    await runner.cleanup()


async def dead_names(me: Attacker) -> None:
    """References whose names are never answered."""
    link = "https://{}." + HANGING + "/a.jpg"
    for n in range(60):
        await me.submit(f"reference {n}", model=AUTO_MODEL, imageUrl=link.format(n))
    await asyncio.sleep(max(me.ends_at - time.monotonic(), 0))


async def unknown_keys(me: Attacker) -> None:
    """Parameters that do not exist."""
    body = json.dumps({"modelName": MODEL, "prompt": "x", "params": {f"k{n}": 0 for n in range(70_000)}}).encode()
    headers = me.headers | {"Content-Type": "application/json"}

    async def ask(_: int) -> None:
        with contextlib.suppress(httpx.HTTPError):
            answer = await me.client.post(QUOTE, content=body, headers=headers)
            me.answers[str(answer.status_code)] += 1

    await me.at_once(6, ask)


async def churn(me: Attacker) -> None:
    """Submit and cancel, as fast as it goes."""
    await me.at_once(8, lambda n: me.submit_and_cancel(f"churn {n}"), 0.0)


ATTACKS: dict[str, Callable[[Attacker], Awaitable[None]]] = {
    one.__name__: one
    for one in (
        long_words,
        head_flood,
        padded_links,
        keywords,
        bombs,
        refused_tasks,
        silent_connections,
        uploads,
        moves,
        dead_names,
        unknown_keys,
        churn,
    )
}


def webp_of_one_colour(width: int, height: int) -> bytes:
    """A lossless WebP of some 40 bytes, whatever its size: each of its five codes has one symbol, of no bits."""
    bits, length = 0, 0
    fields = [(width - 1, 14), (height - 1, 14), (0, 1), (0, 3), (0, 3), *[(1, 4)] * 5]
    for value, size in fields:
        bits |= value << length
        length += size
    data = b"\x2f" + bits.to_bytes((length + 7) // 8 + 1, "little")
    data += b"\0" * (len(data) % 2)
    chunk = b"VP8L" + len(data).to_bytes(4, "little") + data
    return b"RIFF" + (len(chunk) + 4).to_bytes(4, "little") + b"WEBP" + chunk
