"""Clients of models behind HTTP endpoints, for verifiers, mask sources and rewriters. Imports ``work`` and ``errors``."""
