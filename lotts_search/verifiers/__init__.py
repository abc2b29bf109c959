"""Verifiers score images for prompts: their interface, their batching and the built-in ones, one per file.

Imports ``work`` and ``errors``; a verifier imports its own model's libraries when it is loaded. Names are in
:mod:`lotts_search.registry`.
"""
