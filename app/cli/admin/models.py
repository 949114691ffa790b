"""`gateway models`: lists, changes, compares and checks the rows of `points_config`."""

import json as json_module
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.output import Json, Reason, print_record, print_table, run_with_database

if TYPE_CHECKING:
    from app.database import Database

models = typer.Typer(no_args_is_help=True, help="Models and prices.")


@models.command("list")
def models_list(json: Json = False) -> None:
    """Lists all rows of points_config, also the disabled ones."""
    from app.catalog.models import list_models

    async def work(database: "Database") -> list[dict[str, Any]]:
        return [model.columns for model in await list_models(database, only_enabled=False)]

    rows = run_with_database(work)
    shown = ("model_name", "points_cost", "rules", "task_type", "params", "enabled")
    counted = [row | {"rules": len(row["price_rules"] or [])} for row in rows]
    print_table(rows if json else [{name: row[name] for name in shown} for row in counted], json)


@models.command("set")
def models_set(
    name: str,
    points_cost: Annotated[int | None, typer.Option(min=0)] = None,
    task_type: Annotated[str | None, typer.Option()] = None,
    action: Annotated[str | None, typer.Option()] = None,
    description: Annotated[str | None, typer.Option()] = None,
    params: Annotated[str | None, typer.Option(help='JSON, e.g. {"aspectRatio": "1:1"}')] = None,
    defaults: Annotated[str | None, typer.Option(help="JSON")] = None,
    price_rules: Annotated[str | None, typer.Option(help="JSON list, see docs/pricing.md; [] for none")] = None,
    sort: Annotated[int | None, typer.Option()] = None,
    enabled: Annotated[bool | None, typer.Option("--enable/--disable")] = None,
    reason: Reason = "",
    json: Json = False,
) -> None:
    """Creates a model or changes some of its columns. Submitted tasks keep their price."""
    from app.admin.actions import COMMAND_LINE
    from app.admin.models import create_or_set_model

    changes = {
        "points_cost": points_cost,
        "task_type": task_type,
        "action": action,
        "description": description,
        "params": _parse_json("--params", params, dict),
        "defaults": _parse_json("--defaults", defaults, dict),
        "price_rules": _parse_json("--price-rules", price_rules, list),
        "sort": sort,
        "enabled": enabled,
    }
    run_with_database(lambda database: create_or_set_model(database, COMMAND_LINE, name, changes, reason=reason))
    print_record({"modelName": name, **{key: value for key, value in changes.items() if value is not None}}, json)


@models.command("disable")
def models_disable(name: str, reason: Reason = "", json: Json = False) -> None:
    """Takes a model off sale. Submitted tasks run to their end."""
    from app.admin.actions import COMMAND_LINE
    from app.admin.models import disable_model

    run_with_database(lambda database: disable_model(database, COMMAND_LINE, name, reason=reason))
    print_record({"modelName": name, "enabled": False}, json)


@models.command("diff")
def models_diff(json: Json = False) -> None:
    """Compares points_config with what the migrations seed: exit 0 where they are equal, 1 with the differences."""
    from app.catalog.model_diff import find_diff

    diff = run_with_database(find_diff)
    if json:
        print_record({"equal": diff.is_empty, **asdict(diff)}, json)
    else:
        print("\n".join(diff.lines()) or "equal: points_config is what the migrations seed")
    sys.exit(0 if diff.is_empty else 1)


@models.command("check")
def models_check(json: Json = False) -> None:
    """Checks that each enabled model can be sold by the rules of today. Exit 1 with those that cannot."""
    from app.catalog.model_diff import find_invalid
    from app.catalog.models import read_models

    found, unreadable = run_with_database(read_models)
    enabled = [model for model in found if model.enabled]
    invalid = find_invalid(enabled, unreadable)
    if json:
        print_record({"ok": not invalid, "invalid": invalid}, json)
    else:
        lines = [f"invalid  {row['modelName']}  {row['reason']}" for row in invalid]
        print("\n".join(lines) or f"ok: {len(enabled)} models can be sold")
    sys.exit(1 if invalid else 0)


def _parse_json(option: str, text: str | None, kind: type) -> Any:
    if text is None:
        return None
    try:
        value = json_module.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, kind):
        raise typer.BadParameter(f"must be a JSON {'object' if kind is dict else 'list'}", param_hint=option)
    return value
