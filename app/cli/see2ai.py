"""`gateway see2ai`: whether SEE2AI can be reached with our key, and what is left in the purse."""

import typer

from app.cli.console import Json, print_record, finish_badly, settings_or_exit

see2ai = typer.Typer(no_args_is_help=True, help="The upstream: key and purse.")


@see2ai.command("check")
def see2ai_check(json: Json = False) -> None:
    """Asks SEE2AI who we are: exit 0 where jobs can be made, 1 with the reason."""
    from app.cli.tenant import as_data, ask_tenant, in_words, why_unusable

    settings = settings_or_exit()
    if not settings.see2ai_api_key:
        finish_badly("SEE2AI_API_KEY is not set")
    tenant = ask_tenant(settings)
    print_record((as_data if json else in_words)(tenant, settings.see2ai_base_url), json)
    reason = why_unusable(tenant)
    if reason is not None:
        finish_badly(reason)
