"""Clients like SEE2AI's own for the other actions, in plain `requests`. They compare states without case."""

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest
import requests
from PIL import Image

from tests.support.sandbox_server import KEY, NORMALIZE, UNIWORLD, UPLOAD, VIDEO, Server, directive

POST_SECONDS, GET_SECONDS, POLL_SECONDS = 300, 60, 0.05
GOOD = {"success", "succeeded", "completed", "complete", "done", "finished"}
BAD = {"failed", "failure", "error", "cancelled", "canceled", "expired", "rejected", "timeout"}


class Repair(Exception):
    """SEE2AI asks for a changed request. The text is its message to the user."""


class Client:
    """As little as a script needs: a session with the key, and the origin."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.session = requests.Session()
        self.session.headers["Authorization"] = f"Bearer {KEY}"
        self.approvals: list[str] = []

    def submit(self, path: str, payload: dict[str, Any]) -> dict[str, Any]:
        return self.read(self.session.post(self.origin + path, json=payload, timeout=POST_SECONDS))

    def wait(self, path: str, task_id: str) -> dict[str, Any]:
        for _ in range(1000):
            answer = self.read(self.session.get(f"{self.origin}{path}/status/{task_id}", timeout=GET_SECONDS))
            state = state_of(answer)
            if state in GOOD:
                return answer
            if state in BAD:
                raise RuntimeError(answer.get("error_message") or state)
            if state == "awaiting_user_approval":
                self.approvals.append(answer["approval_urls"]["approve"])
            time.sleep(POLL_SECONDS)
        raise TimeoutError(task_id)

    def read(self, response: requests.Response) -> dict[str, Any]:
        answer = response.json()
        if response.status_code == 422 and state_of(answer) == "needs_repair":
            raise Repair(answer["user_facing_message"], [issue["message"] for issue in answer["issues"]])
        response.raise_for_status()
        return answer

    def upload(self, name: str, content: bytes) -> str:
        files = {"file": (name, content)}
        answer = self.read(self.session.post(self.origin + UPLOAD, files=files, timeout=POST_SECONDS))
        assert answer["status"].lower() == "success"
        return answer["url"]


def state_of(answer: dict[str, Any]) -> str:
    return str(answer.get("state") or answer.get("status") or "").lower()


def download(url: str, to: Path) -> Path:
    """In pieces and without the key, as from any CDN."""
    with requests.get(url, stream=True, timeout=GET_SECONDS) as response:
        response.raise_for_status()
        with to.open("wb") as file:
            for piece in response.iter_content(1 << 16):
                file.write(piece)
    return to


@pytest.fixture
def client(sandbox: Server) -> Client:
    return Client(sandbox.origin)


@pytest.fixture
def later_client(later: Server) -> Client:
    return Client(later.origin)


def test_uniworld(client: Client, tmp_path: Path) -> None:
    payload = {"prompt": "Create a clean product visual.", "canvas_w": 1200, "canvas_h": 800, "hierarchical": False}
    submitted = client.submit(UNIWORLD, payload)
    done = client.wait(UNIWORLD, submitted["task_id"])
    steps = [f"{step['step']}: {step['message']} ({step['percent']} %)" for step in done["progress"]]
    assert steps[-1].endswith("(100 %)")
    result = done.get("result") or {}
    url = done.get("image_url") or result.get("final_url") or result.get("provider_final_url")
    assert Image.open(download(url, tmp_path / "city.jpg")).size == (1200, 800)


@pytest.mark.parametrize("image_field", ["final_url", "provider_final_url"])
def test_uniworld_with_its_image_in_another_field(client: Client, tmp_path: Path, image_field: str) -> None:
    submitted = client.submit(
        UNIWORLD, {"prompt": f'a city [[sandbox: {{"take_seconds": 0, "image_field": "{image_field}"}}]]'}
    )
    done = client.wait(UNIWORLD, submitted["task_id"])
    assert done.get("image_url") is None
    assert Image.open(download(done["result"][image_field], tmp_path / "city.jpg")).size == (1024, 1024)


def test_a_video_from_an_uploaded_first_frame(client: Client, tmp_path: Path) -> None:
    frame = io.BytesIO()
    Image.new("RGB", (1280, 720), "teal").save(frame, "JPEG")
    payload = {
        "prompt": "The camera moves slowly forward.",
        "first_frame_url": client.upload("frame.jpg", frame.getvalue()),
        "duration": 6,
        "resolution": "480p",
        "sync": False,
    }
    done = client.wait(VIDEO, client.submit(VIDEO, payload)["task_id"])
    with av.open(str(download(done["result_urls"][0], tmp_path / "video.mp4"))) as video:
        assert abs(video.duration / av.time_base - 6) < 0.05


def test_a_video_awaited_in_one_call(client: Client, tmp_path: Path) -> None:
    done = client.submit(VIDEO, {"prompt": "a cat", "duration": 4, "resolution": "480p"})
    assert state_of(done) in GOOD
    assert download(done["result_urls"][0], tmp_path / "video.mp4").stat().st_size > 10_000


def test_a_video_in_the_later_form(later_client: Client, tmp_path: Path) -> None:
    payload = {
        "model_name": "see2ai-video-v2",
        "prompt": "a portrait that smiles",
        "reference_image_urls": [later_client.upload("face.png", image("PNG"))],
        "reference_image_contains_real_face": True,
        "resolution": "1080p",
        "aspect_ratio": "1:1",
        "duration": 4,
        "sync": False,
    }
    done = later_client.wait(VIDEO, later_client.submit(VIDEO, payload)["task_id"])
    with av.open(str(download(done["result_urls"][0], tmp_path / "video.mp4"))) as video:
        assert (video.streams.video[0].width, video.streams.video[0].height) == (1080, 1080)


@pytest.mark.parametrize(
    ("approval", "succeeds"),
    [({"approval_seconds": 2, "approved": True}, True), ({"approval_seconds": 2}, False)],
)
def test_a_video_that_needs_approval(client: Client, approval: dict[str, Any], succeeds: bool) -> None:
    submitted = client.submit(VIDEO, {"prompt": f"a face {directive(approval | {'take_seconds': 0.1})}", "sync": False})
    assert state_of(submitted) == "awaiting_user_approval"
    if succeeds:
        assert client.wait(VIDEO, submitted["task_id"])["result_urls"]
    else:
        with pytest.raises(RuntimeError, match="approval expired"):
            client.wait(VIDEO, submitted["task_id"])
    assert client.approvals


def test_a_request_that_needs_repair(later_client: Client) -> None:
    fields = {"prompt": "a cat", "face_image_url": "https://example.com/a.jpg", "sync": False}
    with pytest.raises(Repair, match="face_image_url is not accepted"):
        later_client.submit(VIDEO, fields)
    del fields["face_image_url"]
    assert "task_id" in later_client.submit(VIDEO, fields)


def test_a_video_that_needs_repair_while_it_is_made(client: Client) -> None:
    prompt = "a cat " + directive({"take_seconds": 0.1, "end": "Needs_Repair", "text": "no famous faces"})
    submitted = client.submit(VIDEO, {"prompt": prompt, "sync": False})
    with pytest.raises(Repair, match="no famous faces"):
        client.wait(VIDEO, submitted["task_id"])


def test_normalize_an_upload(client: Client, tmp_path: Path) -> None:
    url = client.upload("large.png", image("PNG", (3000, 1500)))
    answer = client.submit(NORMALIZE, {"image_url": url, "profile": "video_reference"})
    normalized = Image.open(download(answer["normalized_url"], tmp_path / "small.jpg"))
    assert normalized.size == (answer["normalized_width"], answer["normalized_height"]) == (1920, 960)


@pytest.mark.parametrize(
    ("name", "make", "code"),
    [("a.webp", lambda: image("WEBP"), 422), ("a.jpg", lambda: b"", 422), ("a.mp4", lambda: bytes(51 << 20), 413)],
)
def test_uploads_that_are_refused(client: Client, name: str, make: Callable[[], bytes], code: int) -> None:
    with pytest.raises(requests.HTTPError) as caught:
        client.upload(name, make())
    assert caught.value.response.status_code == code


def image(kind: str, size: tuple[int, int] = (320, 320)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "teal").save(file, kind)
    return file.getvalue()
