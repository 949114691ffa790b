"""The command: loads the settings, runs one group of checks after the other, and prints what they found."""

import asyncio
import sys
from collections import Counter
from dataclasses import asdict
from typing import Any

from app.cli.doctor.addresses import log_in_group, public_url_group, upstream_group
from app.cli.doctor.checks import Finding, Group, run_group, without_secrets
from app.cli.doctor.database import database_group
from app.cli.doctor.process import process_group
from app.cli.doctor.redis import redis_group
from app.cli.doctor.storage import storage_group
from app.cli.output import print_record
from app.errors import SettingsError
from app.settings import Settings, load_settings
from app.telemetry.logs import configure_logs


def doctor(*, as_json: bool) -> None:
    """Prints the findings. It ends the process with 1 where one failed, else with 0."""
    findings = _find()
    has_failed = any(finding.status == "failed" for finding in findings)
    if as_json:
        print_record({"ok": not has_failed, "checks": [asdict(finding) for finding in findings]}, as_json)
    else:
        _print_lines(findings)
    sys.exit(1 if has_failed else 0)


def _find() -> list[Finding]:
    try:
        settings = load_settings()
    except SettingsError as error:
        remedy = (
            "Correct it in the environment or in .env; docs/configuration.md lists all settings. Then run this again."
        )
        return [Finding("settings", "failed", line, remedy) for line in str(error).splitlines()]
    configure_logs(settings.model_copy(update={"log_level": "CRITICAL"}))  # the findings say it all
    return [without_secrets(finding, settings) for finding in asyncio.run(_run_all(settings))]


async def _run_all(settings: Settings) -> list[Finding]:
    groups: list[Group[Any]] = [
        process_group(settings),
        database_group(settings),
        redis_group(settings),
        storage_group(settings),
        *([log_in_group(settings)] if settings.jwt_jwks else []),
        upstream_group(settings),
        public_url_group(settings),
    ]
    # One after the other: on a busy machine the work of one would look like the silence of another's server.
    return [finding for group in groups for finding in await run_group(group)]


def _print_lines(findings: list[Finding]) -> None:
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        print(f"{finding.status:<8} {finding.check:<{width}}  {finding.text}")
        if finding.remedy:
            print(f"{'':<8} {'':<{width}}  -> {finding.remedy}")
    counts = Counter(finding.status for finding in findings)
    print(f"{counts['failed']} failed, {counts['warning']} warnings, {counts['ok']} ok")
