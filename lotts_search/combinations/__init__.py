"""Verifiers made of other verifiers, which they load by name. Imports ``registry``, ``verifiers`` and ``errors``."""
