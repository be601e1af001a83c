"""Bulk generation: the jobs of a file, each done once, over one batcher or over many on a Ray cluster."""
