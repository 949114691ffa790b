"""Failpoints: named places where a test can kill or freeze the process.

`GATEWAY_FAULT=NAME:kill:FILE` (or `stop`) arms one failpoint. It acts once: on the first process that passes it while
FILE does not exist. The process creates FILE. A failpoint that is not armed costs one comparison.
"""

import os
import signal
from contextlib import suppress

FAILPOINTS = frozenset(
    {
        "submit.before_commit",
        "submit.after_commit",
        "task.claimed",
        "prepare.after_answer",
        "submit.before_intent",
        "submit.after_intent",
        "submit.after_answer",
        "advance.after_commit",
        "poll.before",
        "poll.after_answer",
        "rehost.before",
        "rehost.after_download",
        "rehost.after_upload",
        "finish.before_commit",
        "finish.after_commit",
        "webhook.after_send",
    }
)
_name, _, _rest = os.environ.get("GATEWAY_FAULT", "").partition(":")
_action, _, _marker_file = _rest.partition(":")
if _name and (_name not in FAILPOINTS or _action not in {"kill", "stop"} or not _marker_file):
    raise SystemExit(f"GATEWAY_FAULT: must be NAME:kill|stop:FILE, NAME one of {', '.join(sorted(FAILPOINTS))}")


def failpoint(name: str) -> None:
    """Kills or stops this process if the failpoint is armed and has not acted yet; otherwise does nothing."""
    if name == _name:
        with suppress(FileExistsError):
            os.close(os.open(_marker_file, os.O_CREAT | os.O_EXCL))
            os.kill(os.getpid(), signal.SIGKILL if _action == "kill" else signal.SIGSTOP)
