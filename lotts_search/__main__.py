"""``python -m lotts_search``: the command ``lotts-search``."""

from __future__ import annotations

import sys


def main() -> None:
    """Import and run the command line; Ctrl-C during the imports ends like Ctrl-C in a command."""
    try:
        from lotts_search.cli import main as run
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
