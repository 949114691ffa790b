"""Directives in a prompt: the rules they give, and the answer to a mistake in one."""

from typing import Any

import pytest

from app.sandbox.rules.directives import parse_prompt, visible_text
from app.sandbox.rules.parse import RuleError, parse_rules
from app.sandbox.rules.rule import ARGUMENTS, FAULT_PLACES, FaultRule, JobRule
from tests.support.sandbox_server import ACTION, UNIWORLD, VIDEO, Server, directive

VALUES = {"seconds": 2.5, "url": "http://10.0.0.1/x?a=1", "media_type": "text/plain", "claimed_bytes": 9999}


def test_a_prompt_without_directives_has_no_rules() -> None:
    assert parse_prompt("一只猫 [[not ours]]") == []


def test_a_directive_holds_one_rule_or_a_list_of_rules() -> None:
    prompt = directive({"fail": 503, "times": 1}, {"take_seconds": 1}) + ' a cat [[SANDBOX:\n{"fail": 429}\n]]'
    failing, shaping, last = parse_prompt(prompt)
    assert (failing, shaping) == (FaultRule(fail=503, times=1), JobRule(take_seconds=1))
    assert last == FaultRule(fail=429)
    assert parse_prompt("[[sandbox: []]]") == []


def test_brackets_inside_a_text_do_not_end_the_directive() -> None:
    for text in ("]]", 'a "quoted" ]] [[sandbox: text', "余额不足; 请充值"):
        assert parse_prompt(directive({"fail": 401, "text": text})) == [FaultRule(fail=401, text=text)]


@pytest.mark.parametrize("fault", FAULT_PLACES)
def test_every_fault_is_accepted_at_its_places_only(fault: str) -> None:
    arguments = {key: VALUES[key] for key, owner in ARGUMENTS.items() if owner == fault}
    rule = {"fault": fault, "times": 2} | arguments
    (known_everywhere,) = parse_rules(rule)
    assert isinstance(known_everywhere, FaultRule)
    assert known_everywhere.places == FAULT_PLACES[fault]
    for place in ("submit", "poll", "result", "upload"):
        if place in FAULT_PLACES[fault]:
            (parsed,) = parse_rules(rule | {"where": place})
            assert isinstance(parsed, FaultRule)
            assert (parsed.places, parsed.describe(place)) == ({place}, f"{place} {fault}")
        else:
            with pytest.raises(RuleError, match=f"{fault} is not known at {place}"):
                parse_rules(rule | {"where": place})


MISTAKES: list[tuple[str, str]] = [
    ("submit fail 503 twice", "'submit fail 503 twice]]': expected JSON"),
    ('{"fial": 400}', "fial: Unknown key"),
    ('{"fail": 200}', "fail: Input should be greater than or equal to 400"),
    ('{"fail": "503"}', "fail: Input should be a valid integer"),
    ('{"fail": 503, "times": "once"}', "times: Input should be a valid integer"),
    ('{"fail": 503, "detail": "xml"}', "detail: Input should be 'string', 'list'"),
    ('{"fail": 503, "fault": "reset"}', "fail and fault need a rule each"),
    ('{"fail": 503, "seconds": 3}', "seconds belongs to hang"),
    ('{"fault": "reset", "detail": "list"}', "detail belongs to fail"),
    ('{"balance": "empty", "text": "no"}', "text belongs to fail"),
    ('{"balance": "empty", "where": "poll"}', "balance is not known at poll"),
    ('{"fault": "explode"}', "fault: Input should be 'hang', 'reset'"),
    ('{"fault": "redirect"}', "redirect needs url"),
    ('{"fault": "content-type"}', "content-type needs media_type"),
    ('{"fault": "content-type", "media_type": "a\\nb"}', "media_type: String should match pattern"),
    ('{"where": "poll"}', "a rule needs fail, fault, balance, delay_seconds, or a key that shapes the job"),
    ("{}", "a rule needs fail, fault, balance, delay_seconds, or a key that shapes the job"),
    ('"take 3"', "A rule should be a JSON object"),
    ('[{"fail": 503}, 3]', "1: A rule should be a JSON object"),
    ('{"take_seconds": "fast"}', "take_seconds: Input should be a valid number"),
    ('{"take_seconds": -1}', "take_seconds: Input should be greater than or equal to 0"),
    ('{"take_seconds": Infinity}', "take_seconds: Input should be"),
    ('{"take_seconds": 0, "fail": 503}', "fail: A rule that shapes a job takes no key of a fault: write two rules"),
    ('{"end": "exploded"}', "end: Should be one of failed,"),
    ('{"approved": true}', "approved belongs to approval_seconds"),
    ('{"take_seconds": 1, "text": "no"}', "text belongs to end"),
    ('{"progress": [1, "x"]}', "progress.1: Input should be a valid integer"),
    ('{"progress": []}', "progress: List should have at least 1 item"),
    ('{"result_count": 21}', "result_count: Input should be less than or equal to 20"),
    ('{"image_field": "result_urls"}', "image_field: Input should be 'image_url'"),
    ('{"polls_without_url": "often"}', "polls_without_url"),
    ('{"\\ud800": 1}', "Text should be valid Unicode"),
    ('{"fail": 503, "text": "\\udfff"}', "Text should be valid Unicode"),
    ('{"fail": 503} twice', "' twice]]': expected ]] after the JSON"),
    ("", "expected JSON"),
    ("[" * 10_000, "expected JSON"),
]


@pytest.mark.parametrize(("rules", "message"), MISTAKES)
def test_a_mistake_is_named(rules: str, message: str) -> None:
    with pytest.raises(RuleError) as caught:
        parse_prompt(f"a cat [[sandbox: {rules}]]")
    assert message in str(caught.value)
    assert "sandbox directive" in str(caught.value)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ('[[sandbox {"fail": 503}]]', "a directive looks like"),
        ('[[ sandbox: {"fail": 503}]]', "a directive looks like"),
        ('[[sandbox: {"fail": 503}', "the end of the prompt: expected ]] after the JSON"),
        ('[[sandbox: {"fail": 503}]', "']': expected ]] after the JSON"),
    ],
)
def test_a_directive_without_its_brackets_is_refused(prompt: str, message: str) -> None:
    with pytest.raises(RuleError) as caught:
        parse_prompt(prompt)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("action", "rule", "reason"),
    [
        (
            ACTION,
            {"where": "upload", "fail": 503},
            "a rule for upload never applies here; this action has submit, poll, result",
        ),
        (ACTION, {"image_field": "final_url"}, "image_field needs"),
        (ACTION, {"size_bytes": 1000}, "size_bytes needs a video"),
        (UNIWORLD, {"result_count": 2}, "result_count needs"),
        (VIDEO, {"image_field": "final_url"}, "image_field needs"),
    ],
)
def test_a_rule_without_effect_on_its_action_is_refused(
    sandbox: Server, action: str, rule: dict[str, Any], reason: str
) -> None:
    body = {"prompt": "a cat " + directive(rule)} | ({"aspect_ratio": "1:1"} if action == ACTION else {})
    answer = sandbox.post(action, **body)
    assert answer.status_code == 422
    (error,) = answer.json()["detail"]
    assert (error["type"], error["loc"]) == ("sandbox_directive", ["body", "prompt"])
    assert reason in error["msg"]
    assert sandbox.journal(outcome="accepted") == []


def test_a_rule_for_another_action_is_no_mistake(sandbox: Server) -> None:
    rule = {"image_field": "final_url", "action": "see2ai_image_uniworld_v2"}
    assert sandbox.submit("a cat " + directive(rule)).status_code == 200


def test_all_mistakes_of_a_prompt_are_in_one_answer(sandbox: Server) -> None:
    answer = sandbox.submit('a cat [[sandbox: [{"fial": 1}, {"fail": 503}, {"end": "x"}]]]')
    errors = answer.json()["detail"]
    assert [error["loc"] for error in errors] == [["body", "prompt", 0, "fial"], ["body", "prompt", 2, "end"]]


def test_images_show_the_prompt_without_its_directives() -> None:
    assert visible_text('一只猫 [[sandbox: {"text": "]]", "end": "failed"}]]') == "一只猫"
    assert visible_text('[[sandbox: {"take_seconds": 1}]]') == '[[sandbox: {"take_seconds": 1}]]'
