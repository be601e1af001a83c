"""The format of a bundle: its files, its manifest, and the checks of both."""
