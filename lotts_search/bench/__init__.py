"""Measurements of the framework itself."""
