"""Brings SEE2AI's results home: fetched through the guarded egress, recognised by their bytes, stored under fixed keys.

Repeating is harmless: the keys depend on the task alone. Nothing is trusted of what the other side says about itself.
"""

import tempfile
from pathlib import Path
from typing import Any

import structlog

from app.egress import EgressError
from app.engine.claim import ClaimedTask
from app.engine.transitions import Complete, Decision, after_host_fault
from app.failpoints import failpoint
from app.files.media import MediaError, inspect_image, inspect_video, make_thumbnail
from app.runtime import Runtime
from app.storage import StorageError

log = structlog.get_logger()

MAX_RESULT_BYTES = {"image": 50_000_000, "video": 1_000_000_000}
DOWNLOAD_SECONDS = {"image": 120.0, "video": 900.0}


async def rehost_results(runtime: Runtime, visit: ClaimedTask) -> Decision:
    """One try at all results of the task: Complete, or what follows from the first fault."""
    try:
        results = [await _host(runtime, visit, place, url) for place, url in enumerate(visit.upstream_state["urls"], 1)]
    except (StorageError, OSError) as error:  # OSError: this machine's own disk, where a result passes through
        log.warning("storage_fault", task_no=visit.task_no, error=str(error))
        return after_host_fault(visit, f"storage: {error}", is_our_storage=True)
    except (EgressError, MediaError) as error:
        log.warning("result_fault", task_no=visit.task_no, error=str(error))
        return after_host_fault(visit, f"result: {error}", is_our_storage=False)
    return Complete(results)


async def _host(runtime: Runtime, visit: ClaimedTask, place: int, url: str) -> dict[str, Any]:
    """Fetched into a file and put from there: a film of any length takes no memory."""
    failpoint("host.before")
    kind = runtime.actions[visit.action].media
    key = f"results/{visit.created_at:%Y/%m}/{visit.task_no}-{place}"
    with tempfile.TemporaryDirectory(prefix="gateway-") as directory:
        path = Path(directory) / "result"
        fetched = await runtime.egress.download(
            url, path, max_bytes=MAX_RESULT_BYTES[kind], timeout_seconds=DOWNLOAD_SECONDS[kind]
        )
        failpoint("host.after_download")
        store = _store_video if kind == "video" else _store_image
        stored = await store(runtime, key, path)
        failpoint("host.after_upload")
    return {**stored, "bytes": fetched.size_bytes}


async def _store_image(runtime: Runtime, key: str, path: Path) -> dict[str, Any]:
    picture = await inspect_image(path)
    thumbnail = await make_thumbnail(path)
    await runtime.store.put_file(f"{key}.{picture.ext}", path, picture.mime)
    await runtime.store.put(f"{key}-thumb.jpg", thumbnail, "image/jpeg")
    return {
        "key": f"{key}.{picture.ext}",
        "thumbnailKey": f"{key}-thumb.jpg",
        "type": picture.mime,
        "width": picture.width,
        "height": picture.height,
    }


async def _store_video(runtime: Runtime, key: str, path: Path) -> dict[str, Any]:
    film = await inspect_video(path)
    await runtime.store.put_file(f"{key}.{film.ext}", path, film.mime)
    return {
        "key": f"{key}.{film.ext}",
        "type": film.mime,
        "width": film.width,
        "height": film.height,
        "durationSeconds": round(film.duration_seconds, 3),
    }
