"""Scripts like SEE2AI's own clients, in plain `requests`. They use nothing of this project."""

import io
import time
from typing import Any

import jsonschema
import requests
from PIL import Image

from tests.support.sandbox_server import ACTION, KEY, Server

POLL_SECONDS = 0.05
PAYLOAD = {
    "prompt": "Create a clean product visual with clear composition.",
    "image_input": [],
    "aspect_ratio": "1:1",
    "resolution": "1K",
    "output_format": "jpg",
}


def test_submit_poll_download(sandbox: Server, output_schema: dict[str, Any]) -> None:
    session = requests.Session()
    session.headers["Authorization"] = f"Bearer {KEY}"
    submitted = session.post(f"{sandbox.origin}{ACTION}/async", json=PAYLOAD, timeout=300)
    submitted.raise_for_status()
    task_id = submitted.json()["task_id"]
    for _ in range(1000):
        answer = session.get(f"{sandbox.origin}{ACTION}/status/{task_id}", timeout=60).json()
        jsonschema.validate(answer, output_schema)
        if answer["status"] == "SUCCESS":
            break
        assert answer["status"] in {"PENDING", "RUNNING"}
        time.sleep(POLL_SECONDS)
    image = requests.get(answer["result_urls"][0], timeout=60)
    assert Image.open(io.BytesIO(image.content)).size == (1024, 1024)


def test_the_documents_own_example(sandbox: Server, output_schema: dict[str, Any]) -> None:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    response = requests.post(sandbox.origin + ACTION, json=PAYLOAD, headers=headers, timeout=300)
    result = response.json()
    jsonschema.validate(result, output_schema)
    assert result["state"].lower() == "success"
    assert requests.get(result["result_urls"][0], timeout=60).headers["content-type"] == "image/jpeg"
