"""Helpers that several test packages share: small models, stand-ins, files, and rules of the whole suite."""
