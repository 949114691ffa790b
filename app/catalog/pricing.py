"""What a task costs: one pure function, exact to the point. Submit charges it, and the same function is what is shown.

    price = ceil((base + Σ each) × Π times)

A model's row has `points_cost` and, in `price_rules`, a list of objects or NULL:

    {"param": "resolution", "points": {"1K": 30, "2K": 45}}        in place of points_cost, by the value
    {"param": "duration", "each": 16, "as": {"-1": 15}}            for each unit; -1 is charged as 15 of them
    {"param": "references", "each": 2}                              for each picture SEE2AI is given
    {"param": "resolution", "times": {"480p": "0.45", "720p": 1}}  a factor, by the value

The rules are checked when a row is written (`validate_rules`) and never at submit.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from app.errors import InvalidParameter
from app.upstreams.action import CallerParams

REFERENCES = "references"
"""Not a param but a count: how many pictures the task gives SEE2AI, in imageUrl or in params."""
MAX_RULES = 20
MAX_POINTS = 2**53  # beyond it a JSON number is no longer exact for a JavaScript client
MAX_FACTOR = 1000
MAX_REFERENCES = 1000  # more than any action takes; for the dearest price only
KINDS = {"points": {"param", "points"}, "each": {"param", "each", "as"}, "times": {"param", "times"}}
WHOLE = re.compile(r"0|-?[1-9][0-9]{0,15}")
DECIMAL = re.compile(r"[0-9]{1,4}(\.[0-9]{1,12})?")


def compute_price(
    points_cost: int, rules: list[dict[str, Any]] | None, params: Mapping[str, Any], references: int
) -> int:
    """Points for one task with these settings (camelCase, defaults filled in) and so many pictures given.

    A value that no rule names, which only a release can bring, is not sold at all: InvalidParameter.
    """
    base, added, factor = points_cost, 0, Fraction(1)
    for rule in rules or ():
        if "points" in rule:
            base = _wait_for_task(rule, rule["points"], params)
        elif "times" in rule:
            factor *= Fraction(str(_wait_for_task(rule, rule["times"], params)))
        else:
            added += rule["each"] * (references if rule["param"] == REFERENCES else _units(rule, params))
    return math.ceil((base + added) * factor)


def _wait_for_task(rule: dict[str, Any], by_value: dict[str, Any], params: Mapping[str, Any]) -> Any:
    key = _key(params.get(rule["param"]))
    if key not in by_value:
        raise _unpriced(rule)
    return by_value[key]


def _units(rule: dict[str, Any], params: Mapping[str, Any]) -> int:
    value = params.get(rule["param"])
    if not _is_whole(value):
        raise _unpriced(rule)
    units: int = rule.get("as", {}).get(_key(value), value)
    if units < 0:
        raise _unpriced(rule)
    return units


def _unpriced(rule: dict[str, Any]) -> InvalidParameter:
    return InvalidParameter(f"params.{rule['param']}", "该取值暂未定价")


def _key(value: Any) -> str | None:
    """A value as the name it has in a rule, which is JSON: booleans are `true` and `false`."""
    if value is None or isinstance(value, str):
        return value
    return str(value).lower() if isinstance(value, bool) else str(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# ------------------------------------------------------------------ when a row is written


def validate_rules(rules: Any, params: type[CallerParams], fixed: Mapping[str, Any], points_cost: int = 0) -> None:
    """Refuses rules that could ever leave a setting without a price, or make one absurd: InvalidParameter.

    `params` are the settings of the row's action, `fixed` those the row does not leave to callers.
    """
    if rules is None:
        return
    if not isinstance(rules, list) or len(rules) > MAX_RULES:
        raise InvalidParameter("price_rules", f"须为 JSON 数组，最多 {MAX_RULES} 条")
    dearest, added, factor = points_cost, 0, Fraction(1)
    for number, rule in enumerate(rules, 1):
        try:
            kind, most = _validate_rule(rule, params, fixed)
        except RuleError as refused:
            raise InvalidParameter("price_rules", f"第 {number} 条: {refused}") from None
        if kind == "points" and any("points" in earlier for earlier in rules[: number - 1]):
            raise InvalidParameter("price_rules", f"第 {number} 条: points 最多只能有一条")
        match kind:
            case "points":
                dearest = int(most)
            case "each":
                added += int(most)
            case "times":
                factor *= most
    if (dearest + added) * factor > MAX_POINTS:
        raise InvalidParameter("price_rules", f"最高价格超过 {MAX_POINTS}")


class RuleError(Exception):
    """What is wrong with one rule, in Chinese."""


@dataclass(frozen=True, slots=True)
class _ParamValues:
    """What a param may be: the values themselves, or whole numbers between two bounds where these are known."""

    all: tuple[Any, ...] | None
    is_whole: bool
    lowest: float
    highest: float
    fixed: Any = None

    def has(self, key: str) -> bool:
        if self.all is not None:
            return key in {_key(value) for value in self.all}
        return bool(WHOLE.fullmatch(key)) and self.lowest <= int(key) <= self.highest

    def sellable(self) -> tuple[Any, ...] | None:
        """Those a task may have on this row."""
        return self.all if self.fixed is None else (self.fixed,)


def _validate_rule(rule: Any, params: type[CallerParams], fixed: Mapping[str, Any]) -> tuple[str, Fraction]:
    """The kind of a rule, and the most it can come to."""
    if not isinstance(rule, dict) or not isinstance(rule.get("param"), str):
        raise RuleError("须为带有 param 的 JSON 对象")
    kinds = [kind for kind in KINDS if kind in rule]
    if len(kinds) != 1:
        raise RuleError("points、each、times 须且只能有一个")
    kind = kinds[0]
    if unknown := rule.keys() - KINDS[kind]:
        raise RuleError(f"不支持的字段 {'、'.join(sorted(map(str, unknown)))}")
    values = _read_values(rule["param"], params, fixed)
    if kind == "each":
        return kind, Fraction(_validate_units(rule, values))
    return kind, _validate_table(rule[kind], kind, values)


def _validate_table(table: Any, kind: str, values: _ParamValues | None) -> Fraction:
    """`points` and `times`: every value that can be sold is named, and nothing that is no value."""
    if values is None or values.all is None:
        raise RuleError(f"{kind} 只能用于有固定取值的参数")
    if not isinstance(table, dict):
        raise RuleError(f"{kind} 须为 JSON 对象")
    if unknown := [str(name) for name in table if not isinstance(name, str) or not values.has(name)]:
        raise RuleError(f"没有取值 {'、'.join(unknown)}")
    if missing := [str(_key(value)) for value in values.sellable() or () if _key(value) not in table]:
        raise RuleError(f"缺少取值 {'、'.join(missing)}")
    read = _read_times if kind == "times" else _read_points
    return max(read(value) for value in table.values())


def _validate_units(rule: dict[str, Any], values: _ParamValues | None) -> int:
    each = int(_read_points(rule["each"]))
    if values is None:
        if "as" in rule:
            raise RuleError(f"{REFERENCES} 不支持 as")
        return each * MAX_REFERENCES
    if not values.is_whole:
        raise RuleError("each 只能用于整数参数")
    charged = rule.get("as", {})
    if not isinstance(charged, dict):
        raise RuleError("as 须为 JSON 对象")
    if unknown := [str(name) for name in charged if not isinstance(name, str) or not values.has(name)]:
        raise RuleError(f"没有取值 {'、'.join(unknown)}")
    stated = {name: int(_read_points(units)) for name, units in charged.items()}
    return each * _most_units(values, stated)


def _most_units(values: _ParamValues, stated: dict[str, int]) -> int:
    sold = values.sellable()
    if sold is None:
        if values.highest == math.inf:
            raise RuleError("参数没有上限，不能按数量定价")
        if not values.lowest >= -MAX_REFERENCES:
            raise RuleError("参数没有下限，不能按数量定价")
        below_zero = range(int(values.lowest), 0)
        units = [stated.get(str(value), value) for value in below_zero]
        units += [int(values.highest), *stated.values()]
    else:
        units = [stated.get(str(value), value) for value in sold]
    if negative := [str(value) for value in units if value < 0]:
        raise RuleError(f"负数取值 {'、'.join(negative[:MAX_RULES])} 须在 as 中说明按多少计费")
    return max(units)


def _read_values(name: str, params: type[CallerParams], fixed: Mapping[str, Any]) -> _ParamValues | None:
    """What JSON Schema says of the param; None for the count of references."""
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
        all=None if listed is None else tuple(listed),
        is_whole=schema.get("type") == "integer",
        lowest=schema.get("minimum", schema.get("exclusiveMinimum", -math.inf)),
        highest=schema.get("maximum", schema.get("exclusiveMaximum", math.inf)),
        fixed=fixed.get(name),
    )


def _read_points(value: Any) -> Fraction:
    if not _is_whole(value) or not 0 <= value <= MAX_POINTS:
        raise RuleError(f"须为 0 到 {MAX_POINTS} 的整数")
    return Fraction(value)


def _read_times(value: Any) -> Fraction:
    """A number or a decimal in quotes. A float is taken as the decimal it is written as."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= MAX_FACTOR
    if is_number or (isinstance(value, str) and DECIMAL.fullmatch(value)):
        factor = Fraction(str(value))
        if 0 < factor <= MAX_FACTOR:
            return factor
    raise RuleError(f"times 须为大于 0 且不超过 {MAX_FACTOR} 的数字或小数字符串")
