"""UniWorld: accepted and refused inputs, states and steps, and the field that holds the image."""

import io
import json
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from PIL import Image

from app.sandbox.media.images import ImageSpec, draw_image
from tests.support.sandbox_server import ACTION, UNIWORLD, Server, directive

INPUT = json.loads((Path(__file__).parents[2] / "seeds" / "uniworld_input.json").read_text("utf-8"))
IMAGE_FIELDS = {"image_url", "final_url", "provider_final_url"}


def made(sandbox: Server, *rules: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """The output of a job that takes no time."""
    return sandbox.make(UNIWORLD, prompt=f"一座城 {directive({'take_seconds': 0}, *rules)}", **fields)


def test_a_job_from_submit_to_done(sandbox: Server, outputs: dict[str, Any]) -> None:
    first = sandbox.post(UNIWORLD, prompt='a city [[sandbox: {"take_seconds": 0.5}]]').json()
    jsonschema.validate(first, outputs["uniworld"])
    assert (first["status"], "state" in first) == ("running", False)
    seen = []
    while not seen or seen[-1]["status"] == "running":
        seen.append(sandbox.poll_action(UNIWORLD, first["task_id"]).json())
        jsonschema.validate(seen[-1], outputs["uniworld"])
        time.sleep(0.02)
    assert seen[-1]["status"] == "done"
    assert seen[-1]["cost_points"] == 50_000
    assert all(answer["image_url"] is None for answer in seen[:-1])
    assert seen[-1]["image_url"].startswith(f"{sandbox.origin}/results/")


def test_progress_is_a_list_of_steps(sandbox: Server) -> None:
    early = sandbox.post(UNIWORLD, prompt='a city [[sandbox: {"end": "never", "progress": [50]}]]').json()["task_id"]
    assert sandbox.poll_action(UNIWORLD, early).json()["progress"] == [
        {"step": "plan", "message": "Planning the scene", "percent": 20},
        {"step": "layout", "message": "Laying out the canvas", "percent": 40},
        {"step": "diffusion", "message": "Painting", "percent": 50},
    ]
    assert made(sandbox)["progress"][-1] == {
        "step": "upload",
        "message": "Storing the picture",
        "percent": 100,
    }


@pytest.mark.parametrize(
    ("canvas", "size"),
    [
        ({}, (1024, 1024)),
        ({"canvas_w": None, "canvas_h": 640}, (1024, 640)),
        ({"canvas_w": 1000, "canvas_h": 333}, (1000, 333)),
        ({"canvas_w": 4096, "canvas_h": 1}, (4096, 1)),
    ],
)
def test_the_image_has_the_requested_canvas(sandbox: Server, canvas: dict[str, Any], size: tuple[int, int]) -> None:
    picture = sandbox.fetch(made(sandbox, **canvas)["image_url"])
    assert Image.open(io.BytesIO(picture.content)).size == size


def test_any_canvas_can_be_drawn() -> None:
    for size in ((1, 1), (1, 4096), (4096, 4096), (7, 3)):
        assert Image.open(io.BytesIO(draw_image(ImageSpec("一座城", "d", "label", size, "jpg")))).size == size


@pytest.mark.parametrize("image_field", sorted(IMAGE_FIELDS))
def test_the_field_of_the_image(sandbox: Server, image_field: str) -> None:
    answer = made(sandbox, {"image_field": image_field})
    found = {"image_url": answer["image_url"]} | (answer["result"] or {})
    assert sandbox.fetch(found[image_field]).headers["content-type"] == "image/jpeg"
    assert [found.get(other) for other in IMAGE_FIELDS - {image_field}] == [None, None]


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": "  "}, "prompt"),
        ({"prompt": "猫" * 5_001}, "prompt"),
        ({"canvas_w": 0}, "canvas_w"),
        ({"canvas_w": -1}, "canvas_w"),
        ({"canvas_h": 4097}, "canvas_h"),
        ({"canvas_h": "1024"}, "canvas_h"),
        ({"canvas_h": 10.5}, "canvas_h"),
        ({"style": "x" * 256}, "style"),
        ({"stylize": 7}, "stylize"),
        ({"skip_diffusion": None}, "skip_diffusion"),
        ({"hierarchical": 1}, "hierarchical"),
        ({"max_review_rounds": -1}, "max_review_rounds"),
        ({"prompt": '[[sandbox: {"size_bytes": 1000}]]'}, "prompt"),
    ],
)
def test_refused_inputs(sandbox: Server, fields: dict[str, Any], where: str) -> None:
    answer = sandbox.post(UNIWORLD, **{"prompt": "a city"} | fields)
    assert answer.status_code == 422
    assert [error["loc"][:2] for error in answer.json()["detail"]] == [["body", where]]
    assert sandbox.journal(outcome="accepted") == []


def test_inputs_that_the_published_schema_allows_are_accepted(sandbox: Server) -> None:
    full = {
        "prompt": "猫" * 5_000,
        "canvas_w": 2048,
        "canvas_h": None,
        "style": "水墨" * 127,
        "stylize": None,
        "skip_diffusion": True,
        "skip_harmonize": True,
        "max_review_rounds": 3,
        "hierarchical": True,
    }
    jsonschema.validate(full, INPUT)
    assert set(full) == set(INPUT["properties"])
    assert sandbox.post(UNIWORLD, **full).status_code == 200
    assert sandbox.client.post(UNIWORLD, json={"data": full}).status_code == 200


@pytest.mark.parametrize("word", ["failed", "error"])
def test_failures_are_in_lower_case_and_cost_nothing(sandbox: Server, word: str) -> None:
    answer = made(sandbox, {"end": word, "text": "no luck"})
    assert (answer["status"], answer["error_message"], answer["cost_points"]) == (word, "no luck", None)


def test_the_paths_of_the_actions_do_not_mix(sandbox: Server) -> None:
    task_id = sandbox.post(UNIWORLD, prompt="a city").json()["task_id"]
    assert sandbox.poll_action(ACTION, task_id).status_code == 404
    assert sandbox.post(f"{UNIWORLD}/async", prompt="a city").status_code == 404
    assert sandbox.post("/api/v1/actions/see2ai_nothing", prompt="a city").status_code == 404
    assert sandbox.poll_action(UNIWORLD, "0" * 32).json() == {"detail": "Task not found."}
    fast = sandbox.submit('a [[sandbox: {"image_field": "final_url"}]]')
    assert (fast.status_code, "image_field" in fast.text) == (422, True)


def test_the_submits_of_one_prompt_are_counted_by_action(sandbox: Server) -> None:
    prompt = 'two actions [[sandbox: {"where": "submit", "fail": 503, "times": 1}]]'
    answers = [sandbox.submit(prompt), sandbox.post(UNIWORLD, prompt=prompt), sandbox.post(UNIWORLD, prompt=prompt)]
    assert [answer.status_code for answer in answers] == [503, 503, 200]
    assert [entry["action"] for entry in sandbox.journal(outcome="accepted")] == ["see2ai_image_uniworld_v2"]
