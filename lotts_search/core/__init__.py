"""The wing that decides what to try: strategies, the search handle, budgets, candidates, journals and records.

Imports ``work`` and ``errors`` only: no torch, no Ray, nothing that computes an image.
"""
