"""Uploaded and normalized files in a temporary directory, bounded, and removed when the process ends."""

import shutil
import tempfile
import threading
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

MAX_BYTES = 1 << 30
MAX_FILES = 2_000


class FileStore:
    """The newest files. `put` writes to the disk: call it in a thread."""

    def __init__(self, max_files: int = MAX_FILES, max_bytes: int = MAX_BYTES) -> None:
        self._max_files, self._max_bytes = max_files, max_bytes
        self._lock = threading.Lock()
        self._folder: Path | None = None
        self._sizes: OrderedDict[str, int] = OrderedDict()

    def put(self, content: BinaryIO, extension: str) -> Path:
        """Copies the file under a new name that nobody can guess, and removes the oldest files over the limits."""
        with self._lock:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="sandbox-files-"))
                weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
            path = self._folder / f"{uuid4().hex}{extension}"
            with path.open("wb") as copy:
                shutil.copyfileobj(content, copy)
            self._sizes[path.name] = path.stat().st_size
            while len(self._sizes) > self._max_files or sum(self._sizes.values()) > self._max_bytes:
                name, _ = self._sizes.popitem(last=False)
                (self._folder / name).unlink(missing_ok=True)
        return path

    def find(self, name: str) -> Path | None:
        """The file of this name, if it is still there; never a path that leads elsewhere."""
        return self._folder / name if self._folder is not None and name in self._sizes else None
