"""The shelf: uploaded and normalized files in a temporary directory, bounded, and gone with the process."""

import shutil
import tempfile
import threading
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

SHELF_BYTES = 1 << 30
SHELF_LENGTH = 2_000


class Shelf:
    """The newest files. Its methods touch the disk: call them in a thread, but for `find`."""

    def __init__(self, length: int = SHELF_LENGTH, most_bytes: int = SHELF_BYTES) -> None:
        self._length, self._most_bytes = length, most_bytes
        self._lock = threading.Lock()
        self._folder: Path | None = None
        self._sizes: OrderedDict[str, int] = OrderedDict()

    def put(self, content: BinaryIO, ending: str) -> Path:
        """Copies the file under a new name that nobody can guess, and lets go of the oldest ones."""
        with self._lock:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="sandbox-shelf-"))
                weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
            path = self._folder / f"{uuid4().hex}{ending}"
            with path.open("wb") as copy:
                shutil.copyfileobj(content, copy)
            self._sizes[path.name] = path.stat().st_size
            while len(self._sizes) > self._length or sum(self._sizes.values()) > self._most_bytes:
                name, _ = self._sizes.popitem(last=False)
                (self._folder / name).unlink(missing_ok=True)
        return path

    def find(self, name: str) -> Path | None:
        """The file of this name, if it is still there; never a path that leads elsewhere."""
        return self._folder / name if self._folder is not None and name in self._sizes else None
