"""What revises prompts by what a picture lacks; names are in :mod:`lotts_search.registry`."""
