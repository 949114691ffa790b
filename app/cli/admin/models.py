"""`gateway models`: the rows of `points_config`, and how they differ from what the migrations seed."""

import json as json_module
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.output import Json, print_record, print_table, run_with_database

if TYPE_CHECKING:
    from app.database import Database

models = typer.Typer(no_args_is_help=True, help="Models and prices.")


@models.command("list")
def models_list(json: Json = False) -> None:
    """All rows of points_config, also the disabled ones."""
    from app.catalog.models import list_models

    async def work(database: "Database") -> list[dict[str, Any]]:
        found = await list_models(database, only_enabled=False)
        return [
            {name: value for name, value in asdict(model).items() if name not in {"now", "rules"}} for model in found
        ]

    rows = run_with_database(work)
    shown = ("model_name", "points_cost", "rules", "task_type", "params", "enabled")
    told = [row | {"rules": len(row["price_rules"] or [])} for row in rows]
    print_table(rows if json else [{name: row[name] for name in shown} for row in told], json)


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
    json: Json = False,
) -> None:
    """Creates a model or changes some of its columns; tasks already submitted keep their price."""
    from app.catalog.models import set_model

    changes = {
        "points_cost": points_cost,
        "task_type": task_type,
        "action": action,
        "description": description,
        "params": _read("--params", params, dict),
        "defaults": _read("--defaults", defaults, dict),
        "price_rules": _read("--price-rules", price_rules, list),
        "sort": sort,
        "enabled": enabled,
    }
    run_with_database(lambda database: set_model(database, name, changes))
    print_record({"modelName": name, **{key: value for key, value in changes.items() if value is not None}}, json)


@models.command("disable")
def models_disable(name: str, json: Json = False) -> None:
    """No new tasks on this model; those already submitted end as usual."""
    from app.catalog.models import disable_model

    run_with_database(lambda database: disable_model(database, name))
    print_record({"modelName": name, "enabled": False}, json)


@models.command("diff")
def models_diff(json: Json = False) -> None:
    """Compares points_config with what the migrations seed: exit 0 where they are equal, 1 with the differences."""
    from app.catalog.models import read_models
    from app.cli.admin.model_diff import diff_models, load_seeded

    now, unreadable = run_with_database(read_models)
    drift = diff_models(load_seeded(), now, unreadable)
    if json:
        print_record({"equal": drift.is_empty, **asdict(drift)}, json)
    else:
        print("\n".join(drift.lines()) or "equal: points_config is what the migrations seed")
    sys.exit(0 if drift.is_empty else 1)


@models.command("check")
def models_check(json: Json = False) -> None:
    """Checks that each enabled model can be sold by the rules of today. Exit 1 with those that cannot."""
    from app.catalog.models import read_models
    from app.cli.admin.model_diff import find_invalid

    found, unreadable = run_with_database(read_models)
    enabled = [model for model in found if model.enabled]
    invalid = find_invalid(enabled, unreadable)
    if json:
        print_record({"ok": not invalid, "invalid": invalid}, json)
    else:
        lines = [f"invalid  {row['modelName']}  {row['reason']}" for row in invalid]
        print("\n".join(lines) or f"ok: {len(enabled)} models can be sold")
    sys.exit(1 if invalid else 0)


def _read(option: str, text: str | None, kind: type) -> Any:
    if text is None:
        return None
    try:
        value = json_module.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, kind):
        raise typer.BadParameter(f"must be a JSON {'object' if kind is dict else 'list'}", param_hint=option)
    return value
