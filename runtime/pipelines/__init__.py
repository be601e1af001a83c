"""The pipelines: one for images, one for clips."""
