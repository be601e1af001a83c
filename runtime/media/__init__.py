"""Images and videos from and to files."""
