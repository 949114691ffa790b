"""The picture normalizer. A call costs the platform RMB 0.01; the smallest whole price is one point, RMB 0.02."""

from migrations.seeding import delete_models, upsert_models

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

MODELS = [
    {
        "model_name": "sc_image_normalize",
        "description": "图片标准化",
        "points_cost": 1,
        "task_type": "image_normalize",
        "action": "see2ai_image_normalize_v1",
        "sort": 310,
    }
]


def upgrade() -> None:
    upsert_models(MODELS)


def downgrade() -> None:
    delete_models([str(model["model_name"]) for model in MODELS])
