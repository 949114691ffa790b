"""The step `rehost`: store the upstream's results in the gateway's own storage.

A result is downloaded through the guarded egress, identified by its bytes, and stored under a key that depends on the
task alone. A repeat is harmless. What the other server says about a result is not trusted.
"""

import tempfile
from pathlib import Path
from typing import Any

import structlog

from app.egress import EgressError
from app.engine.state import ClaimedTask
from app.engine.transitions import Complete, Decision, after_rehost_error
from app.failpoints import failpoint
from app.files.media import MediaError, inspect_image, inspect_video, make_thumbnail
from app.runtime import Runtime
from app.storage import ObjectStore, StorageError

log = structlog.get_logger()

MAX_RESULT_BYTES = {"image": 50_000_000, "video": 1_000_000_000}
DOWNLOAD_SECONDS = {"image": 120.0, "video": 900.0}


async def rehost_results(runtime: Runtime, task: ClaimedTask) -> Decision:
    """One try at all results of the task: Complete, or what follows from the first error."""
    try:
        urls = task.upstream_state.urls
        results = [await _rehost(runtime, task, number, url) for number, url in enumerate(urls, 1)]
    except (StorageError, OSError) as error:  # OSError: the result passes through this machine's disk
        log.warning("storage_failed", task_no=task.task_no, error=str(error))
        return after_rehost_error(task, f"storage: {error}", is_our_storage=True)
    except (EgressError, MediaError) as error:
        log.warning("result_rejected", task_no=task.task_no, error=str(error))
        return after_rehost_error(task, f"result: {error}", is_our_storage=False)
    return Complete(results)


async def _rehost(runtime: Runtime, task: ClaimedTask, number: int, url: str) -> dict[str, Any]:
    """Through a file, so that a video of any length takes no memory."""
    failpoint("rehost.before")
    media = runtime.actions[task.action].media
    key = f"results/{task.created_at:%Y/%m}/{task.task_no}-{number}"
    with tempfile.TemporaryDirectory(prefix="gateway-") as directory:
        path = Path(directory) / "result"
        download = await runtime.egress.download(
            url, path, max_bytes=MAX_RESULT_BYTES[media], timeout_seconds=DOWNLOAD_SECONDS[media]
        )
        failpoint("rehost.after_download")
        store = _store_video if media == "video" else _store_image
        stored = await store(runtime.store, key, path)
        failpoint("rehost.after_upload")
    return {**stored, "bytes": download.size_bytes}


async def _store_image(store: ObjectStore, key: str, path: Path) -> dict[str, Any]:
    image = await inspect_image(path)
    thumbnail = await make_thumbnail(path)
    await store.put_file(f"{key}.{image.ext}", path, image.mime)
    await store.put(f"{key}-thumb.jpg", thumbnail, "image/jpeg")
    return {
        "key": f"{key}.{image.ext}",
        "thumbnailKey": f"{key}-thumb.jpg",
        "type": image.mime,
        "width": image.width,
        "height": image.height,
    }


async def _store_video(store: ObjectStore, key: str, path: Path) -> dict[str, Any]:
    video = await inspect_video(path)
    await store.put_file(f"{key}.{video.ext}", path, video.mime)
    return {
        "key": f"{key}.{video.ext}",
        "type": video.mime,
        "width": video.width,
        "height": video.height,
        "durationSeconds": round(video.duration_seconds, 3),
    }
