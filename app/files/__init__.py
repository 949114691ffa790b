"""Media files: uploads of callers, and the inspection and conversion of images, videos and audio."""
