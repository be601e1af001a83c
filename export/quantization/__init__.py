"""Quantization: choose the layers of a denoiser that become int8, and their grids."""
