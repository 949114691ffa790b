"""The meaning of an answer: every state word, wrapping and error form. No bytes may make the readers raise."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.upstreams.protocol import ResultKind
from app.upstreams.see2ai.actions import ACTIONS, NORMALIZE
from app.upstreams.see2ai.responses import (
    FAILURE,
    NEEDS_REPAIR,
    SUCCESS,
    WAITING,
    HttpResponse,
    error_text,
    read_poll,
    read_result,
    read_submit,
)

READ_URLS = ACTIONS["see2ai_image_generation_fast_v1"].read_urls


def poll(body: Any, status: int = 200) -> Any:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_poll(HttpResponse(status, raw), "t1", READ_URLS)


def submit(body: Any, status: int = 200) -> Any:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_submit(HttpResponse(status, raw))


@pytest.mark.parametrize("field", ["status", "state"])
@pytest.mark.parametrize("normalize", [str.lower, str.upper, str.title, lambda word: f" {word} "])
def test_state_words_are_read_from_either_field_in_any_case(field: str, normalize: Any) -> None:
    for word in SUCCESS:
        assert poll({field: normalize(word), "result_urls": ["https://x/1"]}).kind is ResultKind.SUCCEEDED
    for word in FAILURE - {NEEDS_REPAIR}:
        assert poll({field: normalize(word)}).kind is ResultKind.FAILED
    for word in WAITING | {"running", "dreaming", "审核中"}:
        assert poll({field: normalize(word)}).kind is ResultKind.RUNNING


def test_needs_repair_is_a_422_with_a_state() -> None:
    guidance = {"state": "needs_repair", "error_code": "video_request_invalid", "repair_summary": "不能混用"}
    result = poll(guidance, 422)
    assert (result.kind, result.detail) == (ResultKind.REJECTED, "needs_repair: 不能混用")
    assert submit(guidance, 422).kind is ResultKind.REJECTED
    assert poll({"detail": "x"}, 422).kind is ResultKind.SERVER_ERROR


def test_a_job_that_waits_for_approval_goes_on() -> None:
    body = {"state": "awaiting_user_approval", "approval_id": "a", "approval_urls": {"approve": "u"}, "expires_in_s": 9}
    assert (poll(body).kind, poll(body).is_awaiting_approval) == (ResultKind.RUNNING, True)
    assert poll({"state": "running"}).is_awaiting_approval is False
    assert submit(body).kind is ResultKind.UNKNOWN_OUTCOME  # without a task_id there is nothing to poll
    assert submit({**body, "task_id": "t1"}).kind is ResultKind.ACCEPTED


def result(body: Any, status: int = 200) -> Any:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_result(HttpResponse(status, raw), NORMALIZE.read_urls)


def test_an_answer_that_is_the_result() -> None:
    good = {"normalized_url": "https://x/1", "normalized_bytes": 5}
    assert (result(good).kind, result(good).urls) == (ResultKind.SUCCEEDED, ("https://x/1",))
    assert result({"data": good}).urls == ("https://x/1",)
    for unclear in ({}, {"normalized_url": ""}, {"normalized_url": 5}, {**good, "status": "failed"}, b"<html>", b""):
        assert result(unclear).kind is ResultKind.UNKNOWN_OUTCOME
    assert result(good, 422).kind is ResultKind.REJECTED
    assert result(good, 401).kind is ResultKind.ACCOUNT_ERROR
    assert result(good, 503).kind is ResultKind.SERVER_ERROR


def test_an_unknown_state_means_running_and_is_logged() -> None:
    assert poll({"status": "Dreaming"}).unknown_state == "dreaming"
    assert poll({"status": "RUNNING"}).unknown_state == ""


def test_a_final_state_wins_over_a_running_state_in_the_other_field() -> None:
    assert poll({"status": "running", "state": "SUCCESS", "result_urls": ["u"]}).kind is ResultKind.SUCCEEDED
    assert poll({"status": "failed", "state": "running"}).kind is ResultKind.FAILED


@pytest.mark.parametrize(
    "urls", [None, [], "", [None, 5, ""], {"0": "https://x/1"}], ids=["none", "empty", "text", "odd", "dict"]
)
def test_success_without_a_usable_url_has_no_urls(urls: Any) -> None:
    result = poll({"state": "success", "result_urls": urls})
    assert (result.kind, result.urls) == (ResultKind.SUCCEEDED, ())


def test_a_url_is_taken_however_it_is_spelled() -> None:
    """The egress escapes it, or refuses it."""
    urls = ["https://x/a b.png", "https://x/图\u3000片.png", "HTTPS://X/1\n"]
    assert poll({"state": "success", "result_urls": [*urls, " ", None]}).urls == tuple(urls)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, ResultKind.ACCOUNT_ERROR),
        (402, ResultKind.ACCOUNT_ERROR),
        (403, ResultKind.ACCOUNT_ERROR),
        (404, ResultKind.NOT_FOUND),
        (429, ResultKind.RATE_LIMITED),
    ]
    + [(status, ResultKind.SERVER_ERROR) for status in (500, 502, 503, 504, 418, 302)],
)
def test_poll_statuses(status: int, kind: ResultKind) -> None:
    assert poll({"detail": "x"}, status).kind is kind


SUBMIT_STATUSES = {
    ResultKind.ACCOUNT_ERROR: (401, 402, 403),
    ResultKind.REJECTED: (400, 404, 405, 413, 422),
    ResultKind.RATE_LIMITED: (429,),
    ResultKind.SERVER_ERROR: (500, 502, 503),
    ResultKind.UPSTREAM_TIMEOUT: (504,),
    ResultKind.UNKNOWN_OUTCOME: (301, 302, 307, 501, 520),
}


@pytest.mark.parametrize(("kind", "statuses"), SUBMIT_STATUSES.items())
def test_submit_statuses(kind: ResultKind, statuses: tuple[int, ...]) -> None:
    for status in statuses:
        assert submit({"task_id": "t"}, status).kind is kind


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"{", b"[]", b"null", {}, {"task_id": ""}, {"task_id": None}, {"task_id": ["t"]},
             {"task_id": True}, {"task_id": "x" * 129}, {"task_id": "a\nb"}, b"[" * 100_000],
)  # fmt: skip
def test_a_2xx_without_a_readable_task_id_is_ambiguous(body: Any) -> None:
    assert submit(body).kind is ResultKind.UNKNOWN_OUTCOME


@pytest.mark.parametrize("body", [{"task_id": "t9"}, {"data": {"task_id": "t9"}}, {"task_id": "t9", "status": "?"}])
def test_an_accepted_submit(body: Any) -> None:
    assert (submit(body).kind, submit(body).task_id) == (ResultKind.ACCEPTED, "t9")


def test_a_numeric_task_id_is_read_as_text() -> None:
    assert submit({"task_id": 17}).task_id == "17"


def test_an_answer_about_another_task_is_an_error() -> None:
    assert poll({"task_id": "other", "state": "success", "result_urls": ["u"]}).kind is ResultKind.SERVER_ERROR
    assert poll({"task_id": "t1", "state": "success", "result_urls": ["u"]}).kind is ResultKind.SUCCEEDED


@pytest.mark.parametrize(
    ("payload", "read"),
    [(40, 40), (140, 100), (-3, 0), (39.9, 39), (None, None), ("40", None), (True, None), ([], None),
     ([{"step": "a", "percent": 10}, {"step": "b", "percent": 55}], 55)],
)  # fmt: skip
def test_progress_in_its_forms(payload: Any, read: int | None) -> None:
    assert poll({"status": "running", "progress": payload}).progress == read


def test_a_nan_progress_is_no_progress() -> None:
    assert poll(b'{"status": "running", "progress": NaN}').progress is None


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"detail": "余额不足，请充值"}, "余额不足，请充值"),
        ({"detail": [{"loc": ["body"], "msg": "too long"}, {"msg": "bad"}]}, "too long; bad"),
        ({"error": {"message": "no"}}, "no"),
        ({"error": "plain"}, "plain"),
        ({"message": "m"}, "m"),
        ({"error_message": "em"}, "em"),
        (b"<html>502</html>", "<html>502</html>"),
    ],
)
def test_error_texts_are_found_in_every_field(body: Any, text: str) -> None:
    assert error_text(body if isinstance(body, bytes) else json.dumps(body).encode()) == text


@given(st.integers(100, 999), st.binary(max_size=300))
def test_no_bytes_can_make_the_readers_raise(status: int, body: bytes) -> None:
    assert read_submit(HttpResponse(status, body)).kind in ResultKind
    assert read_poll(HttpResponse(status, body), "t", READ_URLS).kind in ResultKind


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ("status", "state", "task_id", "result_urls", "progress", "detail", "error", "message", "data")


@given(st.sampled_from([200, 400, 401, 404, 422, 500]), st.dictionaries(st.sampled_from(FIELDS), json_values))
def test_no_json_can_make_the_readers_raise(status: int, body: dict[str, Any]) -> None:
    raw = json.dumps(body).encode("utf-8", "surrogatepass")
    result = read_poll(HttpResponse(status, raw), "t", READ_URLS)
    assert result.kind in ResultKind
    assert read_submit(HttpResponse(status, raw)).kind in ResultKind
    if result.kind is ResultKind.FAILED:
        words = {str(body.get("status")).strip().lower(), str(body.get("state")).strip().lower()}
        inner = body.get("data")
        words |= {str(inner.get(f)).strip().lower() for f in ("status", "state")} if isinstance(inner, dict) else set()
        assert words & FAILURE
