"""The endpoint: OpenAI's Images API over searches on shared pools, see docs/serve.md.

``serve run lotts_search.serve:app models=…`` and YAML files of Ray Serve deploy :func:`app`; ``lotts-search serve`` does the
same from the command line.
"""

from __future__ import annotations

from typing import Any


def app(args: dict[str, Any]) -> Any:
    """Return the application of Ray Serve.

    Args:
        args: fields of :class:`lotts_search.serve.config.Config`.
    """
    from lotts_search.serve.deployment import application

    return application(args)
