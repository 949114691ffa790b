"""The 18 models of the first release, with their prices. docs/pricing.md says what the prices assume.

A new database starts with these rows. A later change is a migration of its own, see docs/pricing.md.
"""

from migrations.seeding import delete_models, upsert_models

revision = "v1_models"
down_revision = "v1_ledger_triggers"
branch_labels = None
depends_on = None

MODELS = [
    {
        "model_name": "sc_soraimg_text_auto",
        "description": "速创生图 文生图-自动比例",
        "points_cost": 30,
        "task_type": "text_to_image",
        "action": "see2ai_image_generation_fast_v1",
        "params": {"aspectRatio": "auto"},
        "sort": 10,
    },
    {
        "model_name": "sc_soraimg_text_1x1",
        "description": "速创生图 文生图-正方形(1:1)",
        "points_cost": 30,
        "task_type": "text_to_image",
        "action": "see2ai_image_generation_fast_v1",
        "params": {"aspectRatio": "1:1"},
        "sort": 20,
    },
    {
        "model_name": "sc_soraimg_text_2x3",
        "description": "速创生图 文生图-竖图(2:3)",
        "points_cost": 30,
        "task_type": "text_to_image",
        "action": "see2ai_image_generation_fast_v1",
        "params": {"aspectRatio": "2:3"},
        "sort": 30,
    },
    {
        "model_name": "sc_soraimg_text_3x2",
        "description": "速创生图 文生图-横图(3:2)",
        "points_cost": 30,
        "task_type": "text_to_image",
        "action": "see2ai_image_generation_fast_v1",
        "params": {"aspectRatio": "3:2"},
        "sort": 40,
    },
    {
        "model_name": "sc_soraimg_img2img_auto",
        "description": "速创生图 图生图-自动比例",
        "points_cost": 35,
        "task_type": "image_to_image",
        "action": "see2ai_image_generation_fast_v1",
        "params": {"aspectRatio": "auto"},
        "sort": 50,
    },
    {
        "model_name": "sc_soraimg_img2img_1x1",
        "description": "速创生图 图生图-正方形(1:1)",
        "points_cost": 35,
        "task_type": "image_to_image",
        "action": "see2ai_image_generation_fast_v1",
        "params": {"aspectRatio": "1:1"},
        "sort": 60,
    },
    {
        "model_name": "sc_soraimg_img2img_2x3",
        "description": "速创生图 图生图-竖图(2:3)",
        "points_cost": 35,
        "task_type": "image_to_image",
        "action": "see2ai_image_generation_fast_v1",
        "params": {"aspectRatio": "2:3"},
        "sort": 70,
    },
    {
        "model_name": "sc_soraimg_img2img_3x2",
        "description": "速创生图 图生图-横图(3:2)",
        "points_cost": 35,
        "task_type": "image_to_image",
        "action": "see2ai_image_generation_fast_v1",
        "params": {"aspectRatio": "3:2"},
        "sort": 80,
    },
    {
        "model_name": "sc_uniworld_text_1x1",
        "description": "UniWorld 文生图-正方形(1:1)",
        "points_cost": 80,
        "task_type": "text_to_image",
        "action": "see2ai_image_uniworld_v2",
        "params": {"canvasW": 1024, "canvasH": 1024},
        "sort": 110,
    },
    {
        "model_name": "sc_uniworld_text_2x3",
        "description": "UniWorld 文生图-竖图(2:3)",
        "points_cost": 80,
        "task_type": "text_to_image",
        "action": "see2ai_image_uniworld_v2",
        "params": {"canvasW": 832, "canvasH": 1248},
        "sort": 120,
    },
    {
        "model_name": "sc_uniworld_text_3x2",
        "description": "UniWorld 文生图-横图(3:2)",
        "points_cost": 80,
        "task_type": "text_to_image",
        "action": "see2ai_image_uniworld_v2",
        "params": {"canvasW": 1248, "canvasH": 832},
        "sort": 130,
    },
    {
        "model_name": "sc_uniworld_text_16x9",
        "description": "UniWorld 文生图-横屏(16:9)",
        "points_cost": 80,
        "task_type": "text_to_image",
        "action": "see2ai_image_uniworld_v2",
        "params": {"canvasW": 1344, "canvasH": 756},
        "sort": 140,
    },
    {
        "model_name": "sc_uniworld_text_9x16",
        "description": "UniWorld 文生图-竖屏(9:16)",
        "points_cost": 80,
        "task_type": "text_to_image",
        "action": "see2ai_image_uniworld_v2",
        "params": {"canvasW": 756, "canvasH": 1344},
        "sort": 150,
    },
    {
        "model_name": "sc_video_text_standard",
        "description": "速创视频 文生视频-标准版",
        "points_cost": 0,
        "task_type": "text_to_video",
        "action": "see2ai_video_generation_v1",
        "params": {"version": "standard"},
        "price_rules": [
            {"param": "duration", "each": 80, "as": {"-1": 15}},
            {"param": "resolution", "times": {"480p": "0.45", "720p": 1, "1080p": "2.25"}},
            {"param": "forceAssetUpload", "times": {"true": 2, "false": 1}},
        ],
        "sort": 210,
    },
    {
        "model_name": "sc_video_text_fast",
        "description": "速创视频 文生视频-快速版",
        "points_cost": 0,
        "task_type": "text_to_video",
        "action": "see2ai_video_generation_v1",
        "params": {"version": "fast"},
        "price_rules": [
            {"param": "duration", "each": 64, "as": {"-1": 15}},
            {"param": "resolution", "times": {"480p": "0.45", "720p": 1, "1080p": "2.25"}},
            {"param": "forceAssetUpload", "times": {"true": 2, "false": 1}},
        ],
        "sort": 220,
    },
    {
        "model_name": "sc_video_img2video_standard",
        "description": "速创视频 图生视频-标准版",
        "points_cost": 0,
        "task_type": "image_to_video",
        "action": "see2ai_video_generation_v1",
        "params": {"version": "standard"},
        "price_rules": [
            {"param": "duration", "each": 80, "as": {"-1": 15}},
            {"param": "resolution", "times": {"480p": "0.45", "720p": 1, "1080p": "2.25"}},
            {"param": "forceAssetUpload", "times": {"true": 2, "false": 1}},
        ],
        "sort": 230,
    },
    {
        "model_name": "sc_video_img2video_fast",
        "description": "速创视频 图生视频-快速版",
        "points_cost": 0,
        "task_type": "image_to_video",
        "action": "see2ai_video_generation_v1",
        "params": {"version": "fast"},
        "price_rules": [
            {"param": "duration", "each": 64, "as": {"-1": 15}},
            {"param": "resolution", "times": {"480p": "0.45", "720p": 1, "1080p": "2.25"}},
            {"param": "forceAssetUpload", "times": {"true": 2, "false": 1}},
        ],
        "sort": 240,
    },
    {
        "model_name": "sc_image_normalize",
        "description": "图片标准化",
        "points_cost": 1,
        "task_type": "image_normalize",
        "action": "see2ai_image_normalize_v1",
        "sort": 310,
    },
]


def upgrade() -> None:
    upsert_models(MODELS)


def downgrade() -> None:
    delete_models([model["model_name"] for model in MODELS])
