"""``python -m lotts_search``: the command ``lotts-search``."""

from lotts_search.cli import main

if __name__ == "__main__":
    main()
