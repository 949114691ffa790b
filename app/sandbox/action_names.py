"""The names of SEE2AI's actions, as its URLs have them."""

FAST_IMAGE = "see2ai_image_generation_fast_v1"
UNIWORLD = "see2ai_image_uniworld_v2"
VIDEO = "see2ai_video_generation_v1"
NORMALIZE = "see2ai_image_normalize_v1"
UPLOAD = "see2ai_storage_upload_v1"
ACTION_NAMES = (FAST_IMAGE, UNIWORLD, VIDEO, NORMALIZE, UPLOAD)
