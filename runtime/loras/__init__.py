"""LoRAs that are chosen at run time."""
