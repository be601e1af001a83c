"""The benchmark: a bundle's engines against PyTorch, diffusers and optimum, each in its own process."""
