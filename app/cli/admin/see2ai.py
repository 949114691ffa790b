"""`gateway see2ai`: checks that SEE2AI accepts our key, and shows our balance there."""

import typer

from app.cli.output import Json, fail, print_record, settings_or_exit

see2ai = typer.Typer(no_args_is_help=True, help="The upstream: key and balance.")


@see2ai.command("check")
def see2ai_check(json: Json = False) -> None:
    """Reads our account at SEE2AI: exit 0 where it accepts jobs, 1 with the reason."""
    from app.cli.admin.account import fetch_account, reason_unusable, to_json, to_text

    settings = settings_or_exit()
    if not settings.see2ai_api_key:
        fail("SEE2AI_API_KEY is not set")
    account = fetch_account(settings)
    print_record((to_json if json else to_text)(account, settings.see2ai_base_url), json)
    reason = reason_unusable(account)
    if reason is not None:
        fail(reason)
