"""Evaluation of bundles: parity with PyTorch, float16 ranges, differences by layer, calibration data."""
