"""Fuzzing: changed inputs, each in a process of its own, and what must not come of them."""
