"""Many requests of one bundle at once, batched at the granularity of a denoising step."""
