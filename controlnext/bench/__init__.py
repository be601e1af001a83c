"""The benchmark: what runs a bundle beside what a user would run instead, each in a process of its own."""
