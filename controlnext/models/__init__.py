"""The control module and its injection, in PyTorch."""
