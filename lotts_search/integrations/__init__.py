"""Searches inside other libraries: a pipeline and a block for people who work with diffusers, see docs/clients.md."""
