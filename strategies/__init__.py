"""Search strategies, one per file; their names are in :mod:`lotts_search.registry`.

A strategy decides which trials to run. It imports ``core``, ``arithmetic`` and ``errors``: no torch, no Ray, no files.
"""
