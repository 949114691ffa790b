import pytest

from app.sandbox.markers import KINDS, parse_prompt, parse_trouble, visible_text
from app.sandbox.plan import Plan, Trouble
from app.sandbox.words import MarkerError


def plan(clauses: str) -> Plan:
    return parse_prompt(f"a cat [[sandbox: {clauses}]]")


def test_a_prompt_without_markers_asks_for_nothing() -> None:
    assert parse_prompt("一只猫 [[not ours]]") == Plan()


@pytest.mark.parametrize(
    ("clause", "trouble"),
    [
        ("submit fail 503", Trouble("submit", "fail", None, 503)),
        ("submit 503 once", Trouble("submit", "fail", 1, 503)),
        ("SUBMIT Fail 429 Twice retry-after 3", Trouble("submit", "fail", 2, 429, retry_after_seconds=3)),
        ("submit fail 400 detail error.message always", Trouble("submit", "fail", None, 400, detail="error.message")),
        ('submit fail 401 3 times "余额不足; 请充值"', Trouble("submit", "fail", 3, 401, text="余额不足; 请充值")),
        ("poll 404 6 times", Trouble("poll", "fail", 6, 404)),
        ("poll hang", Trouble("poll", "hang")),
        ("poll hang 2.5 once", Trouble("poll", "hang", 1, seconds=2.5)),
        ("submit hang 3 times", Trouble("submit", "hang", 3)),
        ("submit hang 3 2 times", Trouble("submit", "hang", 2, seconds=3)),
        ("poll wrong-task-id once", Trouble("poll", "wrong-task-id", 1)),
        ("result redirect http://10.0.0.1/x?a=1", Trouble("result", "redirect", text="http://10.0.0.1/x?a=1")),
        ("result lies-about-length", Trouble("result", "lies-about-length")),
        ("result lies-about-length 9999", Trouble("result", "lies-about-length", claimed_bytes=9999)),
        ("result content-type text/plain once", Trouble("result", "content-type", 1, text="text/plain")),
    ],
)
def test_troubles(clause: str, trouble: Trouble) -> None:
    assert plan(clause).troubles == (trouble,)
    assert parse_trouble(clause) == trouble


@pytest.mark.parametrize(
    ("clause", "expected"),
    [
        ("take 0.5", Plan(take_seconds=0.5)),
        ("never finish", Plan(never_finishes=True)),
        ('end Failed "no luck"', Plan(end_word="Failed", end_reason="no luck")),
        ("end DONE", Plan(end_word="DONE")),
        ("state Post-Processing", Plan(running_word="Post-Processing")),
        ('state "in the oven"', Plan(running_word="in the oven")),
        ("progress 10,40,80", Plan(progress=(10, 40, 80))),
        ("field state", Plan(field="state")),
        ("success without url", Plan(looks_without_url=None)),
        ("success without url 2 times", Plan(looks_without_url=2)),
        ("images 3", Plan(images=3)),
        ("approval 2.5", Plan(approval_seconds=2.5)),
        ("approval 0 Granted", Plan(approval_seconds=0, is_granted=True)),
        ("place Final_URL", Plan(place="final_url")),
        ("size 300000000", Plan(size_bytes=300_000_000)),
        ("result expires 0.5", Plan(expires_seconds=0.5)),
        ("result private", Plan(foreign_url="http://169.254.169.254/x.jpg")),
        ('result url "http://[::1]]/x.jpg"', Plan(foreign_url="http://[::1]]/x.jpg")),
    ],
)
def test_outcomes(clause: str, expected: Plan) -> None:
    assert plan(clause) == expected


def test_several_clauses_and_several_markers_keep_their_order() -> None:
    both = parse_prompt("[[sandbox: submit 503 once; take 1]] a cat [[SANDBOX: submit 429 once]]")
    assert [trouble.code for trouble in both.troubles] == [503, 429]
    assert both.take_seconds == 1


@pytest.mark.parametrize("where", KINDS)
def test_every_kind_of_every_place_is_understood(where: str) -> None:
    for kind, argument in KINDS[where].items():
        trouble = parse_trouble(f"{where} {kind} {'X' if argument == 'text' else ''} twice")
        assert (trouble.where, trouble.kind, trouble.times) == (where, kind, 2)


@pytest.mark.parametrize(
    ("prompt", "word"),
    [
        ("[[sandbox: submit fial 400]]", "fial"),
        ("[[sandbox: submit fail 200]]", "200"),
        ("[[sandbox: submit fail 503 3]]", "3"),
        ("[[sandbox: submit fail 503 thrice]]", "thrice"),
        ("[[sandbox: submit fail 503 detail xml]]", "xml"),
        ("[[sandbox: submit reset detail list]]", "detail"),
        ("[[sandbox: poll no-task-id]]", "no-task-id"),
        ("[[sandbox: result malformed]]", "malformed"),
        ("[[sandbox: result redirect]]", ""),
        ("[[sandbox: take fast]]", "fast"),
        ("[[sandbox: take 1 2]]", "2"),
        ("[[sandbox: end exploded]]", "exploded"),
        ("[[sandbox: progress 1,x]]", "1,x"),
        ("[[sandbox: images 21]]", "21"),
        ("[[sandbox: never]]", ""),
        ("[[sandbox: approval]]", ""),
        ("[[sandbox: approval 3 refused]]", "refused"),
        ("[[sandbox: place result_urls]]", "result_urls"),
        ("[[sandbox: size large]]", "large"),
        ("[[sandbox: upload fail 503]]", "upload"),
        ("[[sandbox: ]]", ""),
        ("[[sandbox: take 1;]]", ""),
        ("[[sandbox take 1]]", "[[sandbox"),
        ("[[ sandbox: take 1]]", "[[sandbox"),
        ("[[sandbox: take 1", "[[sandbox"),
    ],
)
def test_a_typo_is_named(prompt: str, word: str) -> None:
    with pytest.raises(MarkerError) as caught:
        parse_prompt(prompt)
    assert caught.value.word == word
    assert repr(word) in str(caught.value)


def test_an_outcome_is_no_trouble() -> None:
    with pytest.raises(MarkerError):
        parse_trouble("take 3")


def test_pictures_show_the_prompt_without_its_markers() -> None:
    assert visible_text("一只猫 [[sandbox: take 1]]") == "一只猫"
    assert visible_text("[[sandbox: take 1]]") == "[[sandbox: take 1]]"
