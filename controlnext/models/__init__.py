"""The control module and its injection into a denoiser, in PyTorch."""
