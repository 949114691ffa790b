"""Price rules: their form, parsed from the JSON of a model's `price_rules`.

{"param": "resolution", "points": {"1K": 30, "2K": 45}}        the base price by the param's value
{"param": "duration", "each": 16, "as": {"-1": 15}}            points per unit; -1 counts as 15 units
{"param": "references", "each": 2}                             points per reference image
{"param": "resolution", "times": {"480p": "0.45", "720p": 1}}  a factor by the param's value
"""

import re
from fractions import Fraction
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, PlainValidator, Tag, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from app.errors import InvalidParameter

MAX_RULES = 20
MAX_POINTS = 2**53  # JavaScript reads integers exactly up to here
MAX_FACTOR = 1000
DECIMAL = re.compile(r"[0-9]{1,4}(\.[0-9]{1,12})?")


def _parse_factor(value: Any) -> Fraction:
    """A number or a decimal string. A float counts as the decimal number that it prints as."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= MAX_FACTOR
    if is_number or (isinstance(value, str) and DECIMAL.fullmatch(value)):
        factor = Fraction(str(value))
        if 0 < factor <= MAX_FACTOR:
            return factor
    raise ValueError("not a factor")


Points = Annotated[int, Field(ge=0, le=MAX_POINTS)]
Factor = Annotated[Fraction, PlainValidator(_parse_factor)]


class _Rule(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    param: str


class PointsRule(_Rule):
    """The base price by the param's value, in place of `points_cost`."""

    points: dict[str, Points]


class EachRule(_Rule):
    """Points per unit. `units` (in JSON `as`) overrides the number of units of a value."""

    each: Points
    units: dict[str, Points] = Field(default_factory=dict, alias="as")


class TimesRule(_Rule):
    """A factor by the param's value."""

    times: dict[str, Factor]


def _kind(rule: Any) -> str | None:
    kinds = [kind for kind in ("points", "each", "times") if isinstance(rule, dict) and kind in rule]
    return kinds[0] if len(kinds) == 1 else None


PriceRule = Annotated[
    Annotated[PointsRule, Tag("points")] | Annotated[EachRule, Tag("each")] | Annotated[TimesRule, Tag("times")],
    Discriminator(_kind),
]
_RULES = TypeAdapter(Annotated[list[PriceRule], Field(max_length=MAX_RULES)])


def parse_rules(rules: Any) -> list[PriceRule]:
    """Parses the JSON of `price_rules`. None means no rules. Raises InvalidParameter for a wrong form."""
    if rules is None:
        return []
    try:
        return _RULES.validate_python(rules)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise InvalidParameter("price_rules", _describe(problem)) from None


def _describe(problem: ErrorDetails) -> str:
    """The first problem in Chinese. `loc` is (index, kind, field, key), or shorter."""
    if not problem["loc"]:
        return f"须为 JSON 数组，最多 {MAX_RULES} 条"
    index, *path = problem["loc"]
    match problem["type"]:
        case "union_tag_not_found" if isinstance(problem["input"], dict):
            text = "points、each、times 须且只能有一个"
        case "union_tag_not_found" | "missing" | "string_type":
            text = "须为带有 param 的 JSON 对象"
        case "extra_forbidden":
            text = f"不支持的字段 {path[-1]}"
        case "dict_type":
            text = f"{path[-1]} 须为 JSON 对象"
        case "value_error":
            text = f"times 须为大于 0 且不超过 {MAX_FACTOR} 的数字或小数字符串"
        case _:
            text = f"须为 0 到 {MAX_POINTS} 的整数"
    return f"第 {int(index) + 1} 条: {text}"
