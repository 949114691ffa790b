"""The price of a task as a pure function of its model's price rules. Quotes and submits use the same function.

    price = ceil((base + Σ each) × Π times)

The base is the model's `points_cost`, or the points of a PointsRule. `validate_rules` checks the rules of a row when
the row is written.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from app.catalog.price_rules import MAX_POINTS, MAX_RULES, EachRule, PointsRule, PriceRule, TimesRule, parse_rules
from app.errors import InvalidParameter
from app.upstreams.action import CallerParams

REFERENCES = "references"
"""As `param` of a rule it means the number of images that the task gives SEE2AI, in imageUrl or in params."""
MAX_REFERENCES = 1000  # more than any action accepts; only for the upper bound of a price
WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,15}")


def compute_price(points_cost: int, rules: Sequence[PriceRule], params: Mapping[str, Any], references: int) -> int:
    """The points for one task. `params` are camelCase with all defaults; `references` is the number of its images.

    Raises InvalidParameter for a value without a price. A new release can add such a value to an old row.
    """
    base, added, factor = points_cost, 0, Fraction(1)
    for rule in rules:
        value = params.get(rule.param)
        match rule:
            case PointsRule():
                base = _by_value(rule, rule.points, value)
            case TimesRule():
                factor *= _by_value(rule, rule.times, value)
            case EachRule():
                added += rule.each * (references if rule.param == REFERENCES else _units(rule, value))
    return math.ceil((base + added) * factor)


def _by_value(rule: PriceRule, table: Mapping[str, Any], value: Any) -> Any:
    if value is None or (key := _key(value)) not in table:
        raise _unpriced(rule)
    return table[key]


def _units(rule: EachRule, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _unpriced(rule)
    units = rule.units.get(_key(value), value)
    if units < 0:
        raise _unpriced(rule)
    return units


def _unpriced(rule: PriceRule) -> InvalidParameter:
    return InvalidParameter(f"params.{rule.param}", "该取值暂未定价")


def _key(value: Any) -> str:
    """The value as a key of a rule, which is JSON: booleans are `true` and `false`."""
    return str(value).lower() if isinstance(value, bool) else str(value)


# ------------------------------------------------------------------ the rules of a row


class RuleError(Exception):
    """The problem of one rule, in Chinese."""


def validate_rules(rules: Any, params: type[CallerParams], fixed: Mapping[str, Any], points_cost: int = 0) -> None:
    """Raises InvalidParameter if a task could have no price, or a price above MAX_POINTS.

    `params` are the params of the row's action, `fixed` those that the row fixes.
    """
    max_base, max_added, max_factor = points_cost, 0, Fraction(1)
    has_base = False
    for number, rule in enumerate(parse_rules(rules), 1):
        try:
            values = _param_values(rule.param, params, fixed)
            match rule:
                case PointsRule():
                    if has_base:
                        raise RuleError("points 最多只能有一条")
                    _check_values("points", rule.points, values)
                    has_base, max_base = True, max(rule.points.values())
                case TimesRule():
                    _check_values("times", rule.times, values)
                    max_factor *= max(rule.times.values())
                case EachRule():
                    max_added += rule.each * _max_units(rule, values)
        except RuleError as error:
            raise InvalidParameter("price_rules", f"第 {number} 条: {error}") from None
    if (max_base + max_added) * max_factor > MAX_POINTS:
        raise InvalidParameter("price_rules", f"最高价格超过 {MAX_POINTS}")


@dataclass(frozen=True, slots=True)
class _ParamValues:
    """The values of a param: all of them if they are listed, else the bounds of a number."""

    listed: tuple[Any, ...] | None
    is_whole: bool
    min: float
    max: float
    fixed: Any = None

    def has(self, key: str) -> bool:
        if self.listed is not None:
            return key in {_key(value) for value in self.listed}
        return bool(WHOLE_NUMBER.fullmatch(key)) and self.min <= int(key) <= self.max

    def sellable(self) -> tuple[Any, ...] | None:
        """The values that a task of this row may have; None if they are not listed."""
        return self.listed if self.fixed is None else (self.fixed,)

    def require(self, keys: Mapping[str, Any]) -> None:
        if unknown := [key for key in keys if not self.has(key)]:
            raise RuleError(f"没有取值 {'、'.join(unknown)}")


def _param_values(name: str, params: type[CallerParams], fixed: Mapping[str, Any]) -> _ParamValues | None:
    """Reads the values from the JSON schema of the params. None for `references`."""
    properties = params.model_json_schema(by_alias=True).get("properties", {})
    if name == REFERENCES:
        if name in properties:
            raise RuleError(f"{REFERENCES} 与同名参数冲突")
        return None
    if name not in properties:
        raise RuleError(f"没有参数 {name}，可用: {'、'.join([*properties, REFERENCES])}")
    branches = properties[name].get("anyOf", [properties[name]])
    typed = [branch for branch in branches if branch.get("type") != "null"]
    if len(typed) < len(branches) and fixed.get(name) is None:
        raise RuleError(f"参数 {name} 可为空，不能定价")
    schema = typed[0] if len(typed) == 1 else {}
    listed = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if schema.get("type") == "boolean":
        listed = [True, False]
    return _ParamValues(
        listed=None if listed is None else tuple(listed),
        is_whole=schema.get("type") == "integer",
        min=schema.get("minimum", schema.get("exclusiveMinimum", -math.inf)),
        max=schema.get("maximum", schema.get("exclusiveMaximum", math.inf)),
        fixed=fixed.get(name),
    )


def _check_values(kind: str, table: Mapping[str, Any], values: _ParamValues | None) -> None:
    """Raises RuleError unless the table names every sellable value and no value that does not exist."""
    if values is None or values.listed is None:
        raise RuleError(f"{kind} 只能用于有固定取值的参数")
    values.require(table)
    if missing := [str(_key(value)) for value in values.sellable() or () if _key(value) not in table]:
        raise RuleError(f"缺少取值 {'、'.join(missing)}")


def _max_units(rule: EachRule, values: _ParamValues | None) -> int:
    if values is None:
        if "units" in rule.model_fields_set:
            raise RuleError(f"{REFERENCES} 不支持 as")
        return MAX_REFERENCES
    if not values.is_whole:
        raise RuleError("each 只能用于整数参数")
    values.require(rule.units)
    sellable = values.sellable()
    if sellable is None:
        if values.max == math.inf:
            raise RuleError("参数没有上限，不能按数量定价")
        if not values.min >= -MAX_REFERENCES:
            raise RuleError("参数没有下限，不能按数量定价")
        below_zero = [rule.units.get(str(value), value) for value in range(int(values.min), 0)]
        units = [*below_zero, int(values.max), *rule.units.values()]
    else:
        units = [rule.units.get(str(value), value) for value in sellable]
    if negative := [str(value) for value in units if value < 0]:
        raise RuleError(f"负数取值 {'、'.join(negative[:MAX_RULES])} 须在 as 中说明按多少计费")
    return max(units)
