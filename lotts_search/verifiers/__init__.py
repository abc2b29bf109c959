"""Verifiers score images for prompts: their interface, their batching and the built-in ones, one per file.

Imports ``work``, ``errors`` and the reading of model files in ``backbones``; a verifier imports its own model's libraries
when it is loaded. Names are in :mod:`lotts_search.registry`.
"""
