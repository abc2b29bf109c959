"""Search strategies, one a file; their names are in :mod:`lotts_search.registry`."""
