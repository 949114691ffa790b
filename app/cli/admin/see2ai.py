"""`gateway see2ai`: whether SEE2AI can be reached with our key, and what is left in the purse."""

import typer

from app.cli.output import Json, fail, print_record, settings_or_exit

see2ai = typer.Typer(no_args_is_help=True, help="The upstream: key and purse.")


@see2ai.command("check")
def see2ai_check(json: Json = False) -> None:
    """Asks SEE2AI who we are: exit 0 where jobs can be made, 1 with the reason."""
    from app.cli.admin.account import as_data, fetch_account, in_words, reason_unusable

    settings = settings_or_exit()
    if not settings.see2ai_api_key:
        fail("SEE2AI_API_KEY is not set")
    account = fetch_account(settings)
    print_record((as_data if json else in_words)(account, settings.see2ai_base_url), json)
    reason = reason_unusable(account)
    if reason is not None:
        fail(reason)
