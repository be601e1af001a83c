"""What a bundle is: its files, its manifest, and what both have to be."""
