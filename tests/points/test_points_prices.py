"""Prices: each rule and each refusal by example, the arithmetic compared with decimals by Hypothesis."""

import decimal
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from app.catalog.models import validate_model
from app.catalog.price_rules import MAX_POINTS, MAX_RULES, parse_rules
from app.catalog.pricing import compute_price, validate_rules
from app.errors import InvalidParameter
from app.upstreams.action import CallerParams

SECONDS = (-1, *range(4, 16))
BY_RESOLUTION = {"param": "resolution", "points": {"1K": 30, "2K": 45}}
BY_SECOND = {"param": "duration", "each": 16, "as": {"-1": 15}}
BY_REFERENCE = {"param": "references", "each": 2}
BY_SIZE = {"param": "size", "times": {"480p": "0.45", "720p": 1, "1080p": 2.25}}
BY_AUDIO = {"param": "withAudio", "times": {"true": "1.5", "false": 1}}


class Settings(CallerParams):
    """Every kind of setting that a rule may refer to."""

    resolution: Literal["1K", "2K"] = "1K"
    duration: Literal[-1, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15] = 5
    size: Literal["480p", "720p", "1080p"] = "720p"
    with_audio: bool = False
    only: Literal["one"] = "one"
    images: Annotated[int, Field(ge=1, le=10)] = 1
    shift: Annotated[int, Field(ge=-2, le=3)] = 0
    endless: int = 0
    upwards: Annotated[int, Field(ge=0)] = 0
    mixed: Literal[1, "auto"] = 1
    canvas: Annotated[int, Field(ge=1, le=4096)] | None = None
    quality: Literal["low", "high"] | None = None
    either: int | str = 1
    weight: float = 1.0
    note: str = ""


class ConfusingSettings(CallerParams):
    references: int = 0


def cost(rules: Any, *, references: int = 0, points_cost: int = 10, **changes: Any) -> int:
    return compute_price(points_cost, parse_rules(rules), Settings().model_dump(by_alias=True) | changes, references)


# ------------------------------------------------------------------ what each rule charges


@pytest.mark.parametrize(
    ("rules", "changes", "points"),
    [
        (None, {}, 10),
        ([], {}, 10),
        ([BY_RESOLUTION], {}, 30),
        ([BY_RESOLUTION], {"resolution": "2K"}, 45),
        ([BY_SECOND], {}, 10 + 5 * 16),
        ([BY_SECOND], {"duration": -1}, 10 + 15 * 16),
        ([BY_REFERENCE], {"references": 3}, 16),
        ([BY_SIZE], {"size": "480p"}, 5),  # 4.5
        ([BY_SIZE], {"size": "1080p"}, 23),  # 22.5
        ([BY_AUDIO], {"withAudio": True}, 15),
        ([BY_AUDIO], {}, 10),
        ([BY_RESOLUTION, BY_SECOND, BY_REFERENCE, BY_SIZE], {"size": "480p", "references": 1}, 51),  # 112 × 0.45 = 50.4
        ([BY_SIZE, BY_REFERENCE, BY_SECOND, BY_RESOLUTION], {"size": "480p", "references": 1}, 51),
        ([BY_SIZE, BY_AUDIO], {"size": "1080p", "withAudio": True}, 34),  # 33.75, rounded once
        ([{"param": "resolution", "points": {"1K": 0, "2K": 1}}], {}, 0),
        ([{"param": "duration", "points": {"5": 7}}], {}, 7),
        ([{"param": "images", "each": 4}], {"images": 10}, 50),
    ],
)
def test_a_rule_gives_its_price(rules: Any, changes: dict[str, Any], points: int) -> None:
    assert cost(rules, **changes) == points


def test_decimals_are_exact() -> None:
    """0.1 × 3 is exactly 0.3. With floats all of these would be rounded up by a point."""
    for tenth in (0.1, "0.1"):
        assert cost([{"param": "size", "times": {"720p": tenth}}], points_cost=30) == 3
    thrice = [{"param": "size", "times": {"720p": 1.1}}] * 3
    assert cost(thrice, points_cost=1000) == 1331
    assert cost([{"param": "size", "times": {"720p": 1e-07}}], points_cost=10_000_000) == 1


def test_big_numbers_stay_exact() -> None:
    assert cost([BY_REFERENCE], points_cost=2**53 - 1, references=1) == 2**53 + 1
    assert cost([{"param": "size", "times": {"720p": "1000"}}], points_cost=2**53 + 1) == (2**53 + 1) * 1000


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        (BY_RESOLUTION, {"resolution": "4K"}),
        (BY_RESOLUTION, {"resolution": None}),
        (BY_SIZE, {"size": "8K"}),
        (BY_AUDIO, {"withAudio": None}),
        (BY_SECOND, {"duration": -2}),
        (BY_SECOND, {"duration": None}),
        (BY_SECOND, {"duration": "5"}),
        (BY_SECOND, {"duration": True}),
        ({"param": "lately", "each": 1}, {}),
    ],
)
def test_a_value_without_a_price_is_refused(rule: dict[str, Any], changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameter, match=rf"params\.{rule['param']} 该取值暂未定价"):
        cost([rule], **changes)


# ------------------------------------------------------------------ the arithmetic

whole = st.integers(0, 10**9)
factors = st.decimals("0.0001", 1000, places=4)
spoken = st.sampled_from([str, float])  # a decimal in quotes, or a number of the row's JSON


@given(
    points_cost=whole,
    by_value=st.none() | st.tuples(whole, whole),
    each=st.none() | whole,
    by_reference=st.none() | whole,
    times=st.lists(st.tuples(factors, spoken), max_size=4),
    duration=st.sampled_from(SECONDS),
    place=st.tuples(st.sampled_from(["1K", "2K"]), st.integers(0, 14)),
)
def test_it_agrees_with_decimals(
    points_cost: int,
    by_value: tuple[int, int] | None,
    each: int | None,
    by_reference: int | None,
    times: list[tuple[decimal.Decimal, Any]],
    duration: int,
    place: tuple[str, int],
) -> None:
    resolution, references = place
    rules: list[dict[str, Any]] = [
        {"param": "size", "times": {"720p": normalize(factor)}} for factor, normalize in times
    ]
    base = points_cost
    if by_value is not None:
        rules.append({"param": "resolution", "points": {"1K": by_value[0], "2K": by_value[1]}})
        base = by_value[resolution == "2K"]
    if each is not None:
        rules.append({"param": "duration", "each": each, "as": {"-1": 15}})
        base += each * (15 if duration == -1 else duration)
    if by_reference is not None:
        rules.append({"param": "references", "each": by_reference})
        base += by_reference * references
    with decimal.localcontext(decimal.Context(prec=200)):
        expected = decimal.Decimal(base)
        for factor, _ in times:
            expected *= factor
        expected = expected.to_integral_value(decimal.ROUND_CEILING)
    found = cost(rules, points_cost=points_cost, references=references, duration=duration, resolution=resolution)
    assert type(found) is int
    assert found >= 0
    assert found == expected


@given(each=whole, factor=factors, shorter=st.sampled_from(SECONDS[1:]), longer=st.sampled_from(SECONDS[1:]))
def test_longer_is_never_cheaper_and_auto_costs_the_longest(
    each: int, factor: decimal.Decimal, shorter: int, longer: int
) -> None:
    rules = [
        {"param": "duration", "each": each, "as": {"-1": 15}},
        {"param": "size", "times": {"720p": str(factor)}},
    ]
    shorter, longer = sorted((shorter, longer))
    assert cost(rules, duration=shorter) <= cost(rules, duration=longer) <= cost(rules, duration=-1)
    assert cost(rules, duration=-1) == cost(rules, duration=15)


@given(points_cost=whole, factor=factors, references=st.integers(0, 1000))
def test_rules_that_pass_the_check_stay_within_the_maximum_price(
    points_cost: int, factor: decimal.Decimal, references: int
) -> None:
    rules = [BY_RESOLUTION, BY_SECOND, BY_REFERENCE, {"param": "size", "times": dict.fromkeys(SIZES, str(factor))}]
    validate_rules(rules, Settings, {}, points_cost)
    for duration in SECONDS:
        assert 0 <= cost(rules, points_cost=points_cost, references=references, duration=duration) <= MAX_POINTS


# ------------------------------------------------------------------ what may be written

SIZES = ("480p", "720p", "1080p")


@pytest.mark.parametrize(
    ("rules", "fixed"),
    [
        (None, {}),
        ([], {}),
        ([BY_RESOLUTION, BY_SECOND, BY_REFERENCE, BY_SIZE, BY_AUDIO], {}),
        ([BY_SIZE] * MAX_RULES, {"size": "480p"}),
        ([{"param": "size", "times": {"480p": "0.45"}}], {"size": "480p"}),
        ([{"param": "size", "times": {"480p": "0.45", "720p": 1}}], {"size": "480p"}),
        ([{"param": "withAudio", "points": {"false": 3}}], {"withAudio": False}),
        ([{"param": "duration", "each": 3}], {"duration": 8}),
        ([{"param": "endless", "each": 3}], {"endless": 8}),
        ([{"param": "only", "points": {"one": 3}}], {}),
        ([{"param": "mixed", "points": {"1": 3, "auto": 4}}], {}),
        ([{"param": "images", "each": 3}], {}),
        ([{"param": "images", "each": 3, "as": {"1": 0}}], {}),
        ([{"param": "shift", "each": 3, "as": {"-2": 0, "-1": 4}}], {}),
        ([{"param": "quality", "points": {"low": 1}}], {"quality": "low"}),
        ([{"param": "canvas", "each": 1}], {"canvas": 512}),
        ([{"param": "references", "each": 0}], {}),
    ],
)
def test_valid_rules_may_be_written(rules: Any, fixed: dict[str, Any]) -> None:
    validate_rules(rules, Settings, fixed, 10)


NAN = float("nan")
BAD_RULES = [
    ("须为 JSON 数组", {}),
    ("须为 JSON 数组", "[]"),
    ("最多 20 条", [BY_REFERENCE] * 21),
    ("第 2 条: 须为带有 param", [BY_REFERENCE, 5]),
    ("须为带有 param", [{"each": 2}]),
    ("须为带有 param", [{"param": 3, "each": 2}]),
    ("须且只能有一个", [{"param": "resolution"}]),
    ("须且只能有一个", [BY_RESOLUTION | {"each": 2}]),
    ("不支持的字段 unit", [BY_REFERENCE | {"unit": 1}]),
    ("不支持的字段 as", [BY_RESOLUTION | {"as": {}}]),
    ("points 最多只能有一条", [BY_RESOLUTION, BY_RESOLUTION]),
    ("没有参数 with_audio", [{"param": "with_audio", "times": {"true": 1, "false": 1}}]),
    ("没有参数 nonsense", [{"param": "nonsense", "each": 1}]),
    ("points 须为 JSON 对象", [{"param": "resolution", "points": 5}]),
    ("缺少取值 2K", [{"param": "resolution", "points": {"1K": 5}}]),
    ("缺少取值 480p、1080p", [{"param": "size", "times": {"720p": 1}}]),
    ("缺少取值 true", [{"param": "withAudio", "times": {"false": 1}}]),
    ("缺少取值 -1", [{"param": "duration", "times": {str(s): 1 for s in SECONDS[1:]}}]),
    ("没有取值 4K", [{"param": "resolution", "points": {"1K": 1, "2K": 2, "4K": 3}}]),
    ("没有取值 True", [{"param": "withAudio", "times": {"True": 1, "true": 1, "false": 1}}]),
    ("有固定取值的参数", [{"param": "note", "points": {"": 5}}]),
    ("有固定取值的参数", [{"param": "images", "times": {"1": 5}}]),
    ("有固定取值的参数", [{"param": "references", "times": {"1": 5}}]),
    ("有固定取值的参数", [{"param": "either", "points": {"1": 5}}]),
    ("可为空", [{"param": "quality", "points": {"low": 1, "high": 2}}]),
    ("可为空", [{"param": "canvas", "each": 1}]),
    ("整数参数", [{"param": "resolution", "each": 1}]),
    ("整数参数", [{"param": "withAudio", "each": 1}]),
    ("整数参数", [{"param": "weight", "each": 1}]),
    ("整数参数", [{"param": "mixed", "each": 1}]),
    ("没有上限", [{"param": "upwards", "each": 1}]),
    ("没有上限", [{"param": "endless", "each": 1}]),
    ("-1 须在 as 中", [{"param": "duration", "each": 1}]),
    ("-2 须在 as 中", [{"param": "shift", "each": 1, "as": {"-1": 1}}]),
    ("没有取值 -3", [{"param": "shift", "each": 1, "as": {"-1": 1, "-2": 1, "-3": 1}}]),
    ("没有取值 01", [{"param": "images", "each": 1, "as": {"01": 1}}]),
    ("没有取值 3", [BY_SECOND | {"as": {"-1": 15, "3": 5}}]),
    ("as 须为 JSON 对象", [BY_SECOND | {"as": 15}]),
    ("references 不支持 as", [BY_REFERENCE | {"as": {"1": 0}}]),
    *[("的整数", [BY_REFERENCE | {"each": bad}]) for bad in (-1, 1.0, "1", True, None, NAN, 2**53 + 1)],
    *[("的整数", [BY_SECOND | {"as": {"-1": bad}}]) for bad in (-1, 1.5, "15", False)],
    *[("的整数", [{"param": "resolution", "points": {"1K": 1, "2K": bad}}]) for bad in (-1, 0.5, "45", True)],
    *[
        ("times 须为", [{"param": "only", "times": {"one": bad}}])
        for bad in (0, -1, 1001, 1000.5, NAN, float("inf"), True, None, [], 10**400)
    ],
    *[
        ("times 须为", [{"param": "only", "times": {"one": bad}}])
        for bad in ("0", "0.0", "-1", "1/3", "1e2", " 1", "1_0", ".5", "1000.1", "9999", "nan", "٣", "1\n")
    ],
    ("最高价格", [{"param": "references", "each": MAX_POINTS // 100}]),
    ("最高价格", [{"param": "only", "points": {"one": MAX_POINTS}}, {"param": "images", "each": 1}]),
    ("最高价格", [{"param": "only", "times": {"one": 1000}}] * 6),
    ("最高价格", [BY_SECOND | {"as": {"-1": MAX_POINTS}}]),
    ("最高价格", [{"param": "images", "each": 1, "as": {"1": MAX_POINTS}}]),
]


@pytest.mark.parametrize(("problem", "rules"), BAD_RULES, ids=range(len(BAD_RULES)))
def test_invalid_rules_are_refused(problem: str, rules: Any) -> None:
    with pytest.raises(InvalidParameter) as refused:
        validate_rules(rules, Settings, {}, 10)
    assert refused.value.field == "price_rules"
    assert problem in refused.value.message


def test_a_fixed_value_needs_its_own_price_and_an_as_of_its_own() -> None:
    for rule, fixed in (
        ({"param": "size", "times": {"480p": 1}}, {"size": "720p"}),
        ({"param": "duration", "each": 3}, {"duration": -1}),
    ):
        with pytest.raises(InvalidParameter, match=r"缺少取值 720p|-1 须在 as 中"):
            validate_rules([rule], Settings, fixed)


def test_a_param_named_references_cannot_be_mistaken_for_the_count() -> None:
    with pytest.raises(InvalidParameter, match="同名参数冲突"):
        validate_rules([BY_REFERENCE], ConfusingSettings, {})


def test_a_row_is_checked_with_its_rules() -> None:
    row = ("sc_new", 30, "text_to_image", "see2ai_image_generation_fast_v1", {"aspectRatio": "1:1"}, {})
    validate_model(*row, [BY_RESOLUTION, BY_REFERENCE])
    with pytest.raises(InvalidParameter, match="price_rules 第 2 条: 没有参数 duration"):
        validate_model(*row, [BY_RESOLUTION, BY_SECOND])
