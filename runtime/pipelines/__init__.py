"""One pipeline for each task."""
