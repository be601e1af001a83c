"""Bundles as models of NVIDIA Triton Inference Server, run by its Python backend."""
