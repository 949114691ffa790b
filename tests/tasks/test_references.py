"""Reference images as SEE2AI gets them: in order, in all forms, and as the source of an `auto` ratio."""

import io
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from PIL import Image

from app.settings import Settings
from tests.support.makers import IMAGE_MODEL, Maker
from tests.support.sandbox_server import Server
from tests.support.task_rows import ended, shorten_delays, submits

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("working")]
AUTO_MODEL = "sc_soraimg_img2img_auto"
REFERENCES = ["https://example.com/b.png", "https://EXAMPLE.com/a.jpg?x=1", "https://例子.测试/参考 图.webp"]
SENT = [*REFERENCES[:2], "https://xn--fsqu00a.xn--0zwm56d/%E5%8F%82%E8%80%83%20%E5%9B%BE.webp"]
"""Only what is no legal URL is escaped: a link may be signed."""


@dataclass
class Images:
    """A server for pictures. `seen` are the requested paths."""

    origin: str
    files: dict[str, bytes]
    redirects: dict[str, str]
    seen: list[str] = field(default_factory=list)

    def add(self, name: str, size: tuple[int, int], kind: str = "PNG", **options: Any) -> str:
        file = io.BytesIO()
        Image.new("RGB", size, "navy").save(file, kind, **options)
        self.files[f"/{name}"] = file.getvalue()
        return f"{self.origin}/{name}"


@pytest.fixture(scope="module")
def images() -> Iterator[Images]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kept.seen.append(self.path)
            body = kept.files.get(self.path)
            if self.path in kept.redirects:
                self.send_response(302)
                self.send_header("Location", kept.redirects[self.path])
            else:
                self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    kept = Images(f"http://127.0.0.1:{server.server_port}", {}, {})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield kept
    server.shutdown()
    server.server_close()


@pytest.fixture
def settings(settings: Settings, images: Images) -> Settings:
    """The origin of the picture server is exempt from the egress rules."""
    allowed = f"{settings.egress_allow},{images.origin.removeprefix('http://')}"
    return Settings(_env_file=None, **(settings.model_dump() | {"egress_allow": allowed}))


@pytest.fixture(autouse=True)
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_delays(monkeypatch)


async def sent(make: Maker, upstream: Server, **fields: Any) -> dict[str, Any]:
    """The body that SEE2AI got for a submit with these fields."""
    upstream.client.delete("/journal")
    user = await make.user(points=100)
    task_no = await make.task_no(user, '[[sandbox: {"take_seconds": 0}]]', **fields)
    assert (await ended(make, user, task_no)).outcome == "completed"
    (only,) = submits(upstream, '[[sandbox: {"take_seconds": 0}]]')
    return dict(only["body"])


async def test_references_arrive_in_order_in_all_three_forms(make: Maker, upstream: Server) -> None:
    forms = {
        REFERENCES[0]: REFERENCES[:1],
        json.dumps(REFERENCES): SENT,
        json.dumps(REFERENCES[::-1], ensure_ascii=False): SENT[::-1],
        ",".join(REFERENCES): SENT,
    }
    for given, expected in forms.items():
        assert (await sent(make, upstream, model=IMAGE_MODEL, imageUrl=given))["image_input"] == expected
    got = await sent(make, upstream, model=IMAGE_MODEL, imageUrl=REFERENCES)
    assert got == {
        "prompt": '[[sandbox: {"take_seconds": 0}]]',
        "image_input": SENT,
        "aspect_ratio": "1:1",
        "resolution": "1K",
        "output_format": "jpg",
    }


async def test_a_text_without_references_has_no_images_and_auto_is_square(make: Maker, upstream: Server) -> None:
    for nothing in ({}, {"imageUrl": None}, {"imageUrl": ""}, {"imageUrl": []}):
        got = await sent(make, upstream, model="sc_soraimg_text_auto", **nothing)
        assert (got["image_input"], got["aspect_ratio"]) == ([], "1:1")


async def test_auto_becomes_the_ratio_nearest_to_the_first_reference(
    make: Maker, upstream: Server, images: Images
) -> None:
    on_its_side = Image.Exif()
    on_its_side[0x0112] = 6
    # A first reference, and the ratio that `auto` becomes by its size.
    expected = {
        images.add("wide.png", (1600, 900)): "16:9",
        images.add("tall.webp", (100, 790), "WEBP"): "1:8",
        images.add("nearly.jpg", (1010, 1000), "JPEG"): "1:1",
        images.add("ultra.jpg", (2300, 1000), "JPEG"): "21:9",
        images.add("turned.jpg", (900, 600), "JPEG", exif=on_its_side): "2:3",
        images.add("endless.png", (4000, 10)): "8:1",
        images.add("large.png", (3000, 4000)): "3:4",
        images.add("wide.avif", (1600, 900), "AVIF"): "16:9",
        images.add("profile.avif", (900, 1600), "AVIF", icc_profile=bytes(200_000)): "9:16",
        images.add("profile.jpg", (1600, 900), "JPEG", icc_profile=bytes(800_000)): "16:9",
    }
    other = images.add("other.png", (300, 900))
    for first, ratio in expected.items():
        got = await sent(make, upstream, model=AUTO_MODEL, imageUrl=[first, other])
        assert (got["aspect_ratio"], got["image_input"]) == (ratio, [first, other]), first
    assert "/other.png" not in images.seen, "only the first is read"


async def test_a_reference_with_blanks_is_fetched_and_sent_escaped(
    make: Maker, upstream: Server, images: Images
) -> None:
    escaped = images.add("%E5%9B%BE%20%E7%89%87.png?a=b%20c", (1600, 900))
    got = await sent(make, upstream, model=AUTO_MODEL, imageUrl=f"{images.origin}/图 片.png?a=b c")
    assert (got["aspect_ratio"], got["image_input"]) == ("16:9", [escaped])


async def test_an_unreadable_reference_gives_a_square(make: Maker, upstream: Server, images: Images) -> None:
    secret = images.add("secret.png", (1600, 900)).replace("127.0.0.1", "localhost")  # not the exempt spelling
    images.files["/text.png"] = b"no picture at all"
    images.files["/empty.png"] = b""
    images.redirects |= {"/away.png": "http://169.254.169.254/latest/", "/home.png": secret}
    for name in ("text.png", "empty.png", "none.png", "away.png", "home.png"):
        got = await sent(make, upstream, model=AUTO_MODEL, imageUrl=f"{images.origin}/{name}")
        assert got["aspect_ratio"] == "1:1", name
        assert got["image_input"] == [f"{images.origin}/{name}"]
    assert "/secret.png" not in images.seen


async def test_a_private_or_malformed_reference_is_refused_without_a_deduction(make: Maker, upstream: Server) -> None:
    user = await make.user(points=100)
    for bad in (
        *("http://169.254.169.254/x.png", "http://localhost/x.png", "http://10.1.2.3/x.png", "ftp://example.com/x"),
        *([REFERENCES[0], "http://127.0.0.1/x.png"], '["http://[::1]/x.png"]', "[", "[1]", [None], [[]], "", []),
        *([REFERENCES[0]] * 15, json.dumps([REFERENCES[0]] * 15)),
    ):
        answer = await make.submit(user, model=IMAGE_MODEL, imageUrl=bad)
        assert answer.status_code == 400, bad
        assert "imageUrl" in answer.json()["message"], bad
    assert await make.balance(user) == (100, 0)
    assert upstream.journal() == []
