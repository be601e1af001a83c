"""Which layers of a denoiser become int8, and on which grids."""
