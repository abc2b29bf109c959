"""Rewriters revise a prompt by what an image lacks; their names are in :mod:`lotts_search.registry`.

Imports ``work`` and ``errors``; a local language model brings torch in when it is loaded.
"""
