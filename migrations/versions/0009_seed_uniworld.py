"""The five UniWorld models, one canvas each.

An image costs the platform RMB 1. At RMB 0.02 a point, 80 points bring RMB 1.60: a margin of 37.5 %.
"""

from migrations.seeding import delete_models, upsert_models

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

CANVASES = {
    "1x1": ("正方形(1:1)", 1024, 1024),
    "2x3": ("竖图(2:3)", 832, 1248),
    "3x2": ("横图(3:2)", 1248, 832),
    "16x9": ("横屏(16:9)", 1344, 756),
    "9x16": ("竖屏(9:16)", 756, 1344),
}

MODELS = [
    {
        "model_name": f"sc_uniworld_text_{name}",
        "description": f"UniWorld 文生图-{label}",
        "points_cost": 80,
        "task_type": "text_to_image",
        "action": "see2ai_image_uniworld_v2",
        "params": {"canvasW": width, "canvasH": height},
        "sort": sort,
    }
    for sort, (name, (label, width, height)) in zip(range(110, 200, 10), CANVASES.items(), strict=False)
]


def upgrade() -> None:
    upsert_models(MODELS)


def downgrade() -> None:
    delete_models([str(model["model_name"]) for model in MODELS])
