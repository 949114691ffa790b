import asyncio
import gzip
import ipaddress
import os
import resource
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.aio import acting_user
from app.egress import (
    Egress,
    EgressFailed,
    EgressForbidden,
    EgressTimeout,
    escape_url,
    normalize_url,
    resolver,
    validate_url,
)
from app.egress import client as fetch
from app.egress.urls import is_public
from app.runtime import Runtime
from tests.support.raw_connections import GONE
from tests.support.run import examples
from tests.support.waiting import until

BODY = os.urandom(300_000)
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


# ---------------------------------------------------------------- form

GOOD = [
    "https://example.com/ref1.jpg",
    "http://example.com",
    "HTTPS://EXAMPLE.COM:443/a?b=c%2Fd#e",
    "https://example.com:/x",
    "http://example.com:80",
    "https://例子.测试/图片/参考.jpg?名=值",
    "https://bücher.example./x",
    "https://a_b.example.com/%zz%",
    "https://8.8.8.8/x",
    "https://[2606:4700::1111]/x",
    "https://127.0.0.1.example.com/",
    "https://localhost.example.com/",
    "https://example.com/?u=http://127.0.0.1@x:9",
    "https://example.com/" + "a" * 2000,
]
BAD_FORM = [
    "",
    "example.com",
    "//example.com/x",
    "ftp://example.com/x",
    "file:///etc/passwd",
    "javascript:alert(1)",
    "gopher://127.0.0.1:6379/_",
    "http:/example.com",
    "http:example.com",
    "http://",
    "http:///etc/passwd",
    "http://?x",
    "http://:80/",
    "http://user@example.com/",
    "http://user:pass@example.com/",
    "http://example.com@127.0.0.1/",
    "http://example.com＠127.0.0.1/",
    "http://example.com:8080/",
    "http://example.com:22/",
    "http://example.com:0/",
    "http://example.com:99999/",
    "http://example.com:999999/",
    "http://example.com:８０/",
    "http://example.com:80:80/",
    "http://example.com:-1/",
    "http://exa mple.com/",
    "http://example.com/a\tb",
    "http://example.com/\r\nHost: evil",
    "http://example.com/\x00",
    "http://example.com/\x7f",
    "http://example.com/\u2028",
    "http://a_b.例\u3000子.测试/",
    "http://example.com\\@127.0.0.1/",
    "http://example.com/\\evil",
    "http://example.com/\ud800",
    "http://a..b/",
    "http://.example.com/",
    "http://%31%32%37.0.0.1/",
    "http://ex%61mple.com/",
    "http://a℀b.com/",
    "http://" + "a" * 64 + ".com/",
    "http://" + "a." * 130 + "com/",
    "http://xn--\u0661/",
    "http://[::1/",
    "http://::1/",
    "http://[::1]x/",
    "http://x[::1]/",
    "http://[v1.x]/",
    "http://[fe80::1%25eth0]/",
    "http://[2606:4700::1111%eth0]/",
    "https://example.com/" + "a" * 2040,
]
PRIVATE_HOSTS = [
    *("localhost", "LOCALHOST", "localhost.", "a.b.localhost", "ｌｏｃａｌｈｏｓｔ", "loc\u00adalhost。"),
    *("127.0.0.1", "127.0.0.1.", "127.1", "127.0.1", "127.255.255.254", "0", "0.0.0.0", "00"),
    *("2130706433", "0x7f000001", "0x7f.1", "0X7F.0.0.1", "017700000001", "0177.0.0.1", "0177.1", "0x"),
    *("127.0.0.0x1", "127.0.0.01", "127.0.0.1.1", "1.2.3.4.5", "999.1.1.1", "1.2.3.256", "127.0x00.0.1"),
    *("１２７.０.０.１", "127。0。0。1", "127．0．0．1", "127｡0｡0｡1", "①②⑦.0.0.1", "𝟏𝟐𝟕.𝟎.𝟎.𝟏", "12\u00ad7.0.0.1"),
    *("0x７f.１", "２１３０７０６４３３", "127.0.0.\u200b1", "٢١٣٠٧٠٦٤٣٣"),
    *("10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.0.1", "169.254.169.254", "2852039166"),
    *("100.64.0.1", "100.100.100.200", "100.127.255.255", "192.0.0.192", "198.18.0.1", "224.0.0.1"),
    *("240.0.0.1", "255.255.255.255", "192.88.99.1", "192.0.2.1", "203.0.113.9", "168.63.129.16"),
    *("[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::ffff:8.8.8.8]"),
    *("[::127.0.0.1]", "[fe80::1]", "[fc00::1]", "[fd00:ec2::254]", "[fec0::1]", "[ff02::1]"),
    *("[64:ff9b::7f00:1]", "[64:ff9b::8.8.8.8]", "[64:ff9b:1::1]", "[2002:7f00:1::]", "[2001::1]"),
    *("[2001:db8::1]", "[3fff::1]", "[100::1]", "[5f00::1]"),
]


@pytest.mark.parametrize("url", GOOD)
def test_public_addresses_are_accepted(url: str) -> None:
    assert validate_url(url) is None


@pytest.mark.parametrize("url", BAD_FORM)
def test_malformed_addresses_are_refused(url: str) -> None:
    problem = validate_url(url)
    assert problem
    assert len(problem) < 30


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("ftp://example.com/", "必须是 http 或 https 地址"),
        ("http://u:p@example.com/", "不能包含用户名或密码"),
        ("http://example.com:8080/", "端口只能是 80 或 443"),
        ("http://127.0.0.1/", "不能指向内网地址"),
        ("http://a b/", "含有空格或非法字符"),
        ("http://a..b/", "主机名或端口无效"),
        ("http://example.com/" + "a" * 2048, "不能超过 2048 个字符"),
    ],
)
def test_the_reason_is_reported_to_the_caller(url: str, problem: str) -> None:
    assert validate_url(url) == problem


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("https://example.com/a b.png?c=d e", "https://example.com/a%20b.png?c=d%20e"),
        (" https://example.com/a.png\r\n", "https://example.com/a.png"),
        (
            "https://example.com/照片　1.png?名=值#片段",
            "https://example.com/%E7%85%A7%E7%89%87%E3%80%801.png?%E5%90%8D=%E5%80%BC",
        ),
        ('https://example.com/<a>|{b}"^`', "https://example.com/%3Ca%3E%7C%7Bb%7D%22%5E%60"),
        ("HTTPS://Example.COM.:443?a%2Fb+c%zz", "https://example.com/?a%2Fb+c%zz"),
        ("http://example.com:80/[1]~(2)", "http://example.com/[1]~(2)"),
        ("https://a_b.例子。测试/", "https://a_b.xn--fsqu00a.xn--0zwm56d/"),
    ],
)
def test_an_address_is_escaped_as_browsers_do_and_rewritten_no_further(url: str, normal: str) -> None:
    assert normalize_url(url) == normal
    assert escape_url(normal) == normal
    assert escape_url("https://EXAMPLE.com:443/%2f?x#y") == "https://EXAMPLE.com:443/%2f?x#y"


@pytest.mark.parametrize("host", PRIVATE_HOSTS)
def test_a_private_address_is_refused_in_every_spelling(host: str) -> None:
    assert validate_url(f"http://{host}/x") is not None
    assert validate_url(f"https://{host}:443") is not None


def test_exempt_origins_skip_only_the_checks_of_port_and_address() -> None:
    allowed = frozenset({"127.0.0.1:8091", "localhost:9000", "[::1]:9000"})
    for url in ("http://127.0.0.1:8091/a", "http://LocalHost.:9000/", "http://[0:0::1]:9000/"):
        assert validate_url(url, allowed) is None
    for url in (
        "http://127.0.0.1:8092/",
        "http://127.0.0.1/",
        "http://127.1:8091/",
        "http://a.localhost:9000/",
        "http://u@localhost:9000/",
        "ftp://localhost:9000/",
    ):
        assert validate_url(url, allowed) is not None


PIECES = ["http", "https", "://", ":", "/", "//", "@", "[", "]", "%", "%00", "#", "?", ".", "。", "::1", "0x7f"]
PIECES += ["127.0.0.1", "localhost", "xn--", "-", "\\", "\ud800", "\u202e", "ß", "İ", "℀", "99999999999", "\x85"]
url_like = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=8)), max_size=14).map("".join)


@settings(max_examples=examples(300, 1500), deadline=None)
@given(st.one_of(url_like, url_like.map("http://".__add__), st.text(st.characters(), max_size=60)))
@example("http://\ud800/")
@example("http://xn--a/")
@example("http://[::ffff:1.2.3.4%]/")
@example("http://" + "\u0301" * 300)
def test_no_string_raises_and_accepted_hosts_are_called_unchanged(url: str) -> None:
    if validate_url(url) is not None:
        return
    seen = fetch.parse_url(url, frozenset(), max_length=2048)
    assert seen.scheme in {"http", "https"}
    assert seen.port in {80, 443}
    assert seen.raw_user is None
    assert seen.raw_host
    assert str(seen).isascii()
    # An address that libc would read without DNS must be a public one.
    try:
        numeric = socket.getaddrinfo(seen.raw_host, 80, flags=socket.AI_NUMERICHOST)
    except OSError:
        return
    assert all(is_public(str(address[0])) for *_, address in numeric)


@given(st.ip_addresses())
def test_no_address_is_public_that_python_calls_private(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    if address.is_private or address.is_multicast or address.is_reserved or address.is_loopback:
        assert not is_public(str(address))


# ---------------------------------------------------------------- fetching


@asynccontextmanager
async def talking(talk: Talk) -> AsyncIterator[str]:
    """A raw server. `talk` gets each connection after the request's head. Yields its `host:port`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            await talk(reader, writer)
            await writer.drain()
        except GONE:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


@asynccontextmanager
async def answering(*answer: bytes) -> AsyncIterator[str]:
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in answer:
            writer.write(piece)

    async with talking(talk) as origin:
        yield origin


@asynccontextmanager
async def serving(**handlers: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    """An aiohttp server with one handler for each path."""
    app = web.Application()
    for name, handler in handlers.items():
        app.router.add_get(f"/{name}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def egress_to(*origins: str, **options: fetch.Lookup) -> AsyncIterator[Egress]:
    egress = Egress(frozenset(origins), **options)
    try:
        yield egress
    finally:
        await egress.close()


async def fails(url: str, to: Path, *, origin: str, max_bytes: int = 10**6, seconds: float = 60) -> EgressFailed:
    """The reason of the failed download. The file must be deleted, and no signed part of the URL shown."""
    async with egress_to(origin) as egress:
        with pytest.raises(EgressFailed) as caught:
            await egress.download(url, to, max_bytes=max_bytes, timeout_seconds=seconds)
    assert not to.exists()
    assert "signature" not in str(caught.value)
    return caught.value


@pytest.fixture
def to(tmp_path: Path) -> Path:
    return tmp_path / "download"


@pytest.mark.anyio
async def test_a_download_sends_no_cookie_and_no_credential(to: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy or netrc of the environment, no cookies, no credentials, no compression."""
    netrc = to.with_name("netrc")
    netrc.write_text("default login planted password planted\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    received: list[web.Request] = []

    async def file(request: web.Request) -> web.Response:
        received.append(request)
        return web.Response(body=BODY, headers={"Content-Type": "Image/PNG; x=y", "Set-Cookie": "a=b; Path=/"})

    async with serving(file=file) as origin, egress_to(origin) as egress:
        for _ in range(2):
            got = await egress.download(
                f"http://{origin}/file?signature=a%2Fb+c&名=x", to, max_bytes=10**6, timeout_seconds=60
            )
    assert got == fetch.Download(len(BODY), "image/png")
    assert to.read_bytes() == BODY
    assert received[1].raw_path == "/file?signature=a%2Fb+c&%E5%90%8D=x"
    assert received[1].headers["Accept-Encoding"] == "identity"
    assert not {"Cookie", "Authorization", "Proxy-Authorization", "Referer"} & set(received[1].headers)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["::1"], ["2606:4700::1111", "::ffff:7f00:1"], ["fe80::1%lo"], []],
)
async def test_a_name_with_any_private_address_is_refused(addresses: list[str]) -> None:
    async def lookup(host: str, _: int) -> list[str]:
        return addresses

    async with egress_to(lookup=lookup) as egress:
        with pytest.raises(EgressForbidden, match="the address is refused"):
            await egress.read_start("http://friendly.example/", max_bytes=9, timeout_seconds=60)


@pytest.mark.anyio
async def test_the_checked_address_is_the_called_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: the first answer is public, later answers are private. One lookup, one address."""
    requested: list[str] = []
    dialled: list[object] = []

    async def lookup(host: str, _: int) -> list[str]:
        requested.append(host)
        return ["93.184.216.34"] if len(requested) == 1 else ["127.0.0.1"]

    loop = asyncio.get_running_loop()

    async def sock_connect(sock: socket.socket, address: object) -> None:
        dialled.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(loop, "sock_connect", sock_connect)
    async with egress_to(lookup=lookup) as egress:
        with pytest.raises(EgressFailed, match="cannot connect"):
            await egress.read_start("http://rebind.example/x", max_bytes=9, timeout_seconds=60)
        assert requested == ["rebind.example"]
        assert dialled == [("93.184.216.34", 80)]
        with pytest.raises(EgressForbidden):  # each call looks up and checks again
            await egress.read_start("http://rebind.example/x", max_bytes=9, timeout_seconds=60)
    assert len(dialled) == 1


@pytest.mark.anyio
@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "[::1]", "localhost", "[::ffff:7f00:1]"])
async def test_a_literal_private_address_is_refused(host: str, to: Path) -> None:
    async with egress_to() as egress:
        with pytest.raises(EgressForbidden):
            await egress.read_start(f"http://{host}/x", max_bytes=9, timeout_seconds=60)
        with pytest.raises(EgressForbidden):
            await egress.download(f"http://{host}/x", to, max_bytes=9, timeout_seconds=60)


@pytest.mark.anyio
async def test_answers_of_the_system_resolver_are_checked() -> None:
    """The machine's own name resolves to a private address."""
    async with egress_to() as egress:
        resolver = egress._resolver
        with pytest.raises(EgressForbidden):
            await resolver.resolve("localhost", 80)
        allowing = fetch.CheckedResolver(frozenset({"localhost:80"}))
        assert {found["host"] for found in await allowing.resolve("localhost", 80)} <= {"127.0.0.1", "::1"}
        await allowing.close()


@pytest.mark.anyio
async def test_a_name_without_an_address_cannot_be_reached() -> None:
    async def lookup(host: str, _: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    async with egress_to(lookup=lookup) as egress:
        with pytest.raises(EgressFailed, match="cannot connect"):
            await egress.read_start("http://nowhere.example/", max_bytes=9, timeout_seconds=60)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "location",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://10.0.0.1/",
        "http://localhost/",
        "//127.0.0.1/",
        "http://[::ffff:169.254.169.254]/",
        "http://2852039166/",
        "http://user@example.com/",
        "file:///etc/passwd",
        "http://127.0.0.1:22/",
        "http://\u00ff\u00fe/\\",
    ],
)
async def test_a_redirect_is_checked_like_a_first_address(location: str, to: Path) -> None:
    redirect = f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode("latin-1")
    async with answering(redirect) as origin, egress_to(origin) as egress:
        with pytest.raises(EgressForbidden):
            await egress.download(f"http://{origin}/", to, max_bytes=99, timeout_seconds=60)


@pytest.mark.anyio
async def test_what_must_be_https_never_goes_over_http() -> None:
    """Every redirect takes the same way as the first address."""
    async with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nkeys") as origin, egress_to(origin) as egress:
        options = {"max_bytes": 9, "timeout_seconds": 60}
        assert await egress.read_start(f"http://{origin}/", **options) == b"keys"
        with pytest.raises(EgressForbidden):
            await egress.read_start(f"http://{origin}/", **options, https_only=True)


@pytest.mark.anyio
async def test_redirects_are_followed_five_times(to: Path) -> None:
    async def hop(request: web.Request) -> web.Response:
        left = int(request.query["left"])
        if left == 0:
            return web.Response(body=b"arrived")
        return web.Response(status=302, headers={"Location": f"hop?left={left - 1}#fragment"})

    async with serving(hop=hop) as origin:
        async with egress_to(origin) as egress:
            got = await egress.download(f"http://{origin}/hop?left=5", to, max_bytes=99, timeout_seconds=60)
        assert got.size_bytes == 7
        failure = await fails(f"http://{origin}/hop?left=6", to, origin=origin)
        assert "redirects" in str(failure)


@pytest.mark.anyio
@pytest.mark.parametrize("status", [204, 206, 304, 400, 401, 403, 404, 410, 429, 500, 503])
async def test_only_a_200_is_a_file(status: int, to: Path) -> None:
    async with answering(f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n".encode()) as origin:
        failure = await fails(f"http://{origin}/?signature=x", to, origin=origin)
    assert failure.status == status


CROOKED = {
    "shorter than announced": b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nshort",
    "chunks without an end": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n",
    "empty": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "empty until the end": b"HTTP/1.1 200 OK\r\n\r\n",
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nshort!",
    "length and chunks": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nshort",
    "redirect to nowhere": b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n",
    "redirect to nonsense": b"HTTP/1.1 302 Found\r\nLocation: http://[/\r\nContent-Length: 0\r\n\r\n",
    "endless header": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000,
    "nothing": b"",
}


@pytest.mark.anyio
@pytest.mark.parametrize("answer", CROOKED.values(), ids=CROOKED.keys())
async def test_a_malformed_answer_fails(answer: bytes, to: Path) -> None:
    async with answering(answer) as origin:
        await fails(f"http://{origin}/?signature=x", to, origin=origin)


@pytest.mark.anyio
async def test_a_gzip_bomb_is_refused(to: Path) -> None:
    bomb = gzip.compress(bytes(50_000_000))
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n\r\n".encode()
    async with answering(head, bomb) as origin:
        assert "too large" in str(await fails(f"http://{origin}/", to, origin=origin))


ODD_HEADERS = [
    "Content-Encoding: aws-chunked",
    "Content-Encoding: utf-8",
    "Content-Encoding: ",
    "Content-Encoding: gzip",
    "Content-Encoding: br, gzip",
    "Content-Encoding: identity\r\nContent-Encoding: aws-chunked",
    "Content-Type: text/html; charset=gbk",
    "Content-Type: \xff",
    "Content-Disposition: attachment; filename=a.exe",
    "X-Policy: " + "x" * 20_000,
]


@pytest.mark.anyio
@pytest.mark.parametrize("header", ODD_HEADERS)
async def test_what_a_server_says_of_intact_bytes_does_not_count(header: str, to: Path) -> None:
    head = f"HTTP/1.1 200 OK\r\n{header}\r\nContent-Length: {len(BODY)}\r\n\r\n".encode("latin-1")
    async with answering(head, BODY) as origin, egress_to(origin) as egress:
        assert (await egress.download(f"http://{origin}/", to, max_bytes=10**6, timeout_seconds=60)).size_bytes
        assert await egress.read_start(f"http://{origin}/", max_bytes=99, timeout_seconds=60) == BODY[:99]
    assert to.read_bytes() == BODY


@pytest.mark.anyio
@pytest.mark.parametrize("header", ["Content-Encoding: gzip", "Content-Encoding: identity", "Content-Type: image/png"])
async def test_bytes_that_are_gzip_are_decompressed(header: str, to: Path) -> None:
    packed = gzip.compress(BODY) + b"behind the end"
    head = f"HTTP/1.1 200 OK\r\n{header}\r\nContent-Length: {len(packed)}\r\n\r\n".encode()
    async with answering(head, packed) as origin, egress_to(origin) as egress:
        got = await egress.download(f"http://{origin}/", to, max_bytes=10**6, timeout_seconds=60)
    assert (got.size_bytes, to.read_bytes()) == (len(BODY), BODY)


@pytest.mark.anyio
@pytest.mark.parametrize("damage", [slice(0, -9), slice(0, 30)])
async def test_damaged_gzip_fails(damage: slice, to: Path) -> None:
    packed = gzip.compress(BODY)[damage]
    async with answering(f"HTTP/1.1 200 OK\r\nContent-Length: {len(packed)}\r\n\r\n".encode(), packed) as origin:
        assert "compressed" in str(await fails(f"http://{origin}/", to, origin=origin))


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("location", "path"),
    [
        (b"/a b.png?c=d e", "/a%20b.png?c=d%20e"),
        ("/照片.png".encode(), "/%E7%85%A7%E7%89%87.png"),
        ("/照片.png".encode("gbk"), "/%D5%D5%C6%AC.png"),
        (b"  a.png  ", "/a.png"),
        (b"?x=<y>", "/first?x=%3Cy%3E"),
    ],
)
async def test_a_crooked_location_is_followed_as_browsers_do(location: bytes, path: str, to: Path) -> None:
    requested: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requested.append((await reader.readuntil(b"\r\n\r\n")).split()[1].decode())
        if len(requested) == 1:
            writer.write(b"HTTP/1.1 302 Found\r\nLocation: " + location + b"\r\nContent-Length: 0\r\n\r\n")
        else:
            writer.write(b"HTTP/1.1 203 OK\r\nContent-Length: 7\r\n\r\narrived")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    origin = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, egress_to(origin) as egress:
        await egress.download(f"http://{origin}/first", to, max_bytes=99, timeout_seconds=60)
    assert requested == ["/first", path]


class HangingNames:
    """The lookup of a name that starts with `hangs` lasts until `end`. All others are of this machine."""

    def __init__(self) -> None:
        self.end, self.lookups = threading.Event(), 0

    def getaddrinfo(self, host: str, *_: object, **__: object) -> list[object]:
        if host.startswith("hangs"):
            self.lookups += 1
            self.end.wait(60)
        return [(0, 0, 0, "", ("127.0.0.1", 80))]


@pytest.mark.anyio
@pytest.mark.worlds("embedded")
async def test_links_of_callers_leave_the_way_of_results_free(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of many users hang, so that none of the threads for links of callers is free."""
    names = HangingNames()
    monkeypatch.setattr(resolver.socket, "getaddrinfo", names.getaddrinfo)

    async def read(user: int) -> None:
        acting_user.set(user)
        await runtime.caller_egress.read_start(f"http://hangs{user}.example/", max_bytes=9, timeout_seconds=60)

    reads = [asyncio.create_task(read(user)) for user in range(2 * resolver.DNS_THREADS)]
    try:
        await until("no thread is free", lambda: names.lookups == resolver.DNS_THREADS)
        with pytest.raises(EgressForbidden):  # its name resolves at once, to an address that is not public
            await runtime.egress.read_start("http://result.example/", max_bytes=9, timeout_seconds=30)
    finally:
        names.end.set()
        await asyncio.gather(*reads, return_exceptions=True)


@pytest.mark.anyio
async def test_names_that_hang_take_a_share_of_the_threads_even_when_nobody_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The lookup of libc goes on in its thread when the request has long failed."""
    names = HangingNames()
    monkeypatch.setattr(resolver.socket, "getaddrinfo", names.getaddrinfo)

    async def get(user: int, host: str, seconds: float) -> None:
        acting_user.set(user)
        await egress.read_start(f"http://{host}.example/", max_bytes=9, timeout_seconds=seconds)

    async with egress_to() as egress:
        try:
            for wave in range(3):
                hanging = [asyncio.create_task(get(1, f"hangs{wave}-{n}", 0.2)) for n in range(20)]
                failures = await asyncio.gather(*hanging, return_exceptions=True)
                assert {type(one) for one in failures} == {EgressTimeout}
            assert names.lookups == resolver.DNS_THREADS // 4
            with pytest.raises(EgressForbidden):  # its name resolves at once, to an address that is not public
                await get(2, "quick", 5)
        finally:
            names.end.set()


@pytest.mark.anyio
@pytest.mark.parametrize("chunked", [True, False])
async def test_an_endless_body_is_cut_with_flat_memory(chunked: bool, to: Path) -> None:
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n" + b"Transfer-Encoding: chunked\r\n" * chunked + b"\r\n")
        million = bytes(1_000_000)
        for _ in range(1000):
            writer.write(b"F4240\r\n" + million + b"\r\n" if chunked else million)
            await writer.drain()

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with talking(talk) as origin:
        failure = await fails(f"http://{origin}/", to, origin=origin, max_bytes=200_000_000, seconds=120)
    assert "too large" in str(failure)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # kilobytes


@pytest.mark.anyio
async def test_a_body_announced_as_too_large_is_not_read(to: Path) -> None:
    async with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 1000001\r\n\r\nx") as origin:
        assert "too large" in str(await fails(f"http://{origin}/", to, origin=origin, max_bytes=1_000_000))


@pytest.mark.anyio
async def test_a_drip_is_aborted(to: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte now and then triggers no read timeout. The minimum rate ends the download."""
    monkeypatch.setattr(fetch, "MIN_RATE_SECONDS", 0.5)

    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.05)

    async with talking(talk) as origin:
        began = time.monotonic()
        assert "stalled" in str(await fails(f"http://{origin}/", to, origin=origin, seconds=60))
        assert time.monotonic() - began < 30


@pytest.mark.anyio
async def test_a_slow_but_steady_body_arrives(to: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "MIN_RATE_SECONDS", 4.0)

    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {20_000 * 8}\r\n\r\n".encode())
        for _ in range(8):
            writer.write(bytes(20_000))
            await writer.drain()
            await asyncio.sleep(0.8)

    async with talking(talk) as origin, egress_to(origin) as egress:
        got = await egress.download(f"http://{origin}/", to, max_bytes=10**6, timeout_seconds=60)
    assert got.size_bytes == 160_000


@pytest.mark.anyio
@pytest.mark.parametrize("where", ["before the head", "within the head", "within the body", "within redirects"])
async def test_the_deadline_holds_everywhere(where: str, to: Path) -> None:
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if where == "within redirects":
            await asyncio.sleep(0.2)
            writer.write(b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n")
            return
        if where == "within the body":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nx")
        while where == "within the head":
            writer.write(b"HTTP/1.1 200 OK\r\n"[:1])
            await asyncio.sleep(0.1)
        await asyncio.sleep(30)

    async with talking(talk) as origin:
        began = time.monotonic()
        await fails(f"http://{origin}/", to, origin=origin, seconds=0.5)
        assert time.monotonic() - began < 20


@pytest.mark.anyio
async def test_a_cancelled_download_leaves_no_file(to: Path) -> None:
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nx")
        await asyncio.sleep(30)

    async with talking(talk) as origin, egress_to(origin) as egress:
        task = asyncio.create_task(egress.download(f"http://{origin}/", to, max_bytes=99, timeout_seconds=30))
        while not to.exists():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert not to.exists()


@pytest.mark.anyio
async def test_a_full_disk_is_no_error_of_the_server(tmp_path: Path) -> None:
    async with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx") as origin, egress_to(origin) as egress:
        with pytest.raises(FileNotFoundError):
            await egress.download(f"http://{origin}/", tmp_path / "no" / "where", max_bytes=99, timeout_seconds=60)


@pytest.mark.anyio
async def test_the_start_is_requested_and_read() -> None:
    async def file(request: web.Request) -> web.Response:
        assert request.headers["Range"] == "bytes=0-999"
        return web.Response(status=206, body=BODY[:1000], headers={"Content-Range": f"bytes 0-999/{len(BODY)}"})

    async def small(request: web.Request) -> web.Response:
        return web.Response(body=b"small")

    async with serving(file=file, small=small) as origin, egress_to(origin) as egress:
        start = await egress.read_start(f"http://{origin}/file", max_bytes=1000, timeout_seconds=60)
        assert start == BODY[:1000]
        assert await egress.read_start(f"http://{origin}/small", max_bytes=1000, timeout_seconds=60) == b"small"


@pytest.mark.anyio
async def test_no_more_than_the_start_is_read_from_a_server_that_ignores_ranges() -> None:
    sent_bytes = 0
    hung_up = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent_bytes
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n")
        try:
            while True:
                writer.write(bytes(100_000))
                await writer.drain()
                sent_bytes += 100_000
        finally:
            hung_up.set()

    async with talking(talk) as origin, egress_to(origin) as egress:
        start = await egress.read_start(f"http://{origin}/", max_bytes=65_536, timeout_seconds=60)
        await asyncio.wait_for(hung_up.wait(), 30)
    assert len(start) == 65_536
    assert sent_bytes < 20_000_000


@pytest.mark.anyio
@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 206 X\r\nContent-Range: bytes 5-9/10\r\nContent-Length: 5\r\n\r\n56789",
        b"HTTP/1.1 206 X\r\nContent-Length: 5\r\n\r\n56789",
        b"HTTP/1.1 416 X\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 X\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 X\r\nContent-Length: 10\r\n\r\n5",
    ],
)
async def test_a_malformed_start_fails(answer: bytes) -> None:
    async with answering(answer) as origin, egress_to(origin) as egress:
        with pytest.raises(EgressFailed):
            await egress.read_start(f"http://{origin}/", max_bytes=9, timeout_seconds=60)
