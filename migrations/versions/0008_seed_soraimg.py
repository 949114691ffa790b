"""The eight 速创生图 models on SEE2AI's fast-image action."""

from migrations.seeding import delete_models, upsert_models

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

ACTION = "see2ai_image_generation_fast_v1"
RATIOS = {"auto": "自动比例", "1:1": "正方形(1:1)", "2:3": "竖图(2:3)", "3:2": "横图(3:2)"}
FAMILIES = (("text", "text_to_image", "文生图", 30), ("img2img", "image_to_image", "图生图", 35))

MODELS = [
    {
        "model_name": f"sc_soraimg_{family}_{ratio.replace(':', 'x')}",
        "description": f"速创生图 {name}-{label}",
        "points_cost": cost,
        "task_type": task_type,
        "action": ACTION,
        "params": {"aspectRatio": ratio},
        "sort": sort * 10,
    }
    for sort, (family, task_type, name, cost, ratio, label) in enumerate(
        ((*family, ratio, label) for family in FAMILIES for ratio, label in RATIOS.items()), 1
    )
]


def upgrade() -> None:
    upsert_models(MODELS)


def downgrade() -> None:
    delete_models([str(model["model_name"]) for model in MODELS])
