"""What revises prompts by what an image lacks; names are in :mod:`lotts_search.registry`."""
