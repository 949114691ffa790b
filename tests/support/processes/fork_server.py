"""Starts Python programs in milliseconds: one process imports the gateway once, and forks a child for each program.

A child differs from a program that an operator starts only in that its modules are imported already. A few tests also
start the real console script.

`fork_server.py SOCKET` listens on a Unix socket. A client sends one request as a line of JSON, and reads the child's
pid, later its exit code. See `forked.py` for the client.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import random
import runpy
import selectors
import signal
import socket
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from app import failpoints as faults

PR_SET_PDEATHSIG = 1


class Server:
    """Forks a child for each connection, and sends its exit code there."""

    def __init__(self, path: Path) -> None:
        self._subscription = socket.socket(socket.AF_UNIX)
        self._subscription.bind(f"{path}.new")
        self._subscription.listen(64)
        Path(f"{path}.new").rename(path)  # when the file exists, clients can connect
        self._wakeup, write_end = socket.socketpair()
        write_end.setblocking(False)
        self._write_end = write_end
        self._children: dict[int, socket.socket] = {}

    def serve(self) -> dict[str, Any]:
        """Never returns in the server itself; in each child it returns the request that the child is to run."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._write_end.fileno(), warn_on_full_buffer=False)
        with selectors.DefaultSelector() as selector:
            for one in (self._subscription, self._wakeup):
                selector.register(one, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._wakeup:
                        self._wakeup.recv(4096)
                        self._reap()
                    elif (request := self._accept()) is not None:
                        return request

    def _accept(self) -> dict[str, Any] | None:
        connection, _ = self._subscription.accept()
        with connection.makefile("r") as lines:
            line = lines.readline()
        if not line:
            connection.close()
            return None
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for one in (connection, self._subscription, self._wakeup, self._write_end, *self._children.values()):
                one.close()
            return dict(json.loads(line))
        self._children[pid] = connection
        connection.sendall(b"%d\n" % pid)
        return None

    def _reap(self) -> None:
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            with contextlib.closing(self._children.pop(pid)) as connection, contextlib.suppress(OSError):
                connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def become(request: dict[str, Any]) -> None:
    """Gives this child the state of a fresh process with this environment. It ends with the server."""
    os.setsid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    if "TZ" in os.environ:
        time.tzset()
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        with Path(request[name]).open("ab") as log:
            os.dup2(log.fileno(), number)
    importlib.reload(faults)  # it reads the environment when it is imported
    tempfile.tempdir = None  # it was looked up in the server's environment
    random.seed()  # or every child would draw the same numbers


def run(request: dict[str, Any]) -> None:
    """Ends with SystemExit, like the program."""
    program = request["program"]
    sys.argv = [program, *request["arguments"]]
    sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if program == "gateway":
        from app.cli import main

        main()
    else:
        sys.path.insert(0, str(Path(program).parent))
        runpy.run_path(program, run_name="__main__")


def preload() -> None:
    """What the programs import. Nothing here may start a thread: a fork copies only the thread that calls it."""
    import app.cli.commands
    import app.cli.migrate
    import app.cli.run.up
    import app.main
    import app.sandbox
    import worker.main

    assert app.main
    assert worker.main
    threads = len(list(Path("/proc/self/task").iterdir()))
    assert threads == 1, f"{threads} threads run after the imports"
    gc.collect()
    gc.freeze()


def main() -> None:
    del sys.path[0]  # this folder: its modules must not be importable by the programs
    preload()
    request = Server(Path(sys.argv[1])).serve()
    become(request)
    try:
        run(request)
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        sys.exit(1)


if __name__ == "__main__":
    main()
