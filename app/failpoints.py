"""Named places where a test may kill or freeze the process: how the promises about crashes are proved.

Armed by the environment only: `GATEWAY_FAULT=name:kill:FILE` (or `stop`) strikes the first process that passes the
point `name` while FILE does not exist yet, and makes FILE, so that it strikes once. Unarmed it costs one comparison.
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
_action, _, _once = _rest.partition(":")
if _name and (_name not in FAILPOINTS or _action not in {"kill", "stop"} or not _once):
    raise SystemExit(f"GATEWAY_FAULT: want POINT:kill|stop:FILE with a POINT of {', '.join(sorted(FAILPOINTS))}")


def failpoint(name: str) -> None:
    """Nothing at all, unless this very point is armed."""
    if name == _name:
        with suppress(FileExistsError):
            os.close(os.open(_once, os.O_CREAT | os.O_EXCL))
            os.kill(os.getpid(), signal.SIGKILL if _action == "kill" else signal.SIGSTOP)
