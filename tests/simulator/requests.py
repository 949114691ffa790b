"""The submits of a seed's callers, and the settings of its gateway."""

import functools

from app.settings import Settings
from app.tasks.validation import Submission
from tests.simulator.doubles import PUBLIC

NORMALIZE_MODEL = "sim_normalizing"
MODELS = (
    "sc_soraimg_text_1x1",
    "sc_soraimg_img2img_auto",
    "sc_image_normalize",
    NORMALIZE_MODEL,
    "sim_free",
    "sc_soraimg_img2img_1x1",
)
HOSTS = (f"{PUBLIC}/uploads", "https://refs.example.com", "https://refs.example.com")


def submission_of(model: str, name: str, key: str | None, host: str) -> Submission:
    send_request, image = f"ask {name}", None
    if model == "sc_image_normalize":
        send_request = image = f"https://own.example.com/{name}.png"
    elif model == NORMALIZE_MODEL or "img2img" in model:
        image = f"{host}/{name.replace('.', '-')}.png"
    return Submission(model, send_request, image, key=key)


@functools.cache
def settings_of(lease: int, deadline: int, hosting: int, maximum: int) -> Settings:
    return Settings(
        _env_file=None,
        database_url="sqlite+aiosqlite:///simulated.db",
        see2ai_api_key="sk-simulated",
        public_url="https://api.example.com",
        see2ai_uploads="always",
        lease_seconds=lease,
        task_deadline_seconds=deadline,
        hosting_deadline_seconds=hosting,
        circuit_max_pause_seconds=20,
        max_tasks_in_flight=maximum,
    )
