"""How good a bundle is: parity with PyTorch, ranges of float16, differences by layer, and their inputs."""
