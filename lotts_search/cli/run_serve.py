"""Run the endpoint from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lotts_search.cli.console import Console
from lotts_search.errors import BadInput, notice
from lotts_search.study.signals import terminable

LOCAL_NAMES = ("127.0.0.1", "localhost", "::1")


def run(
    config: Path | None,
    models: list[str],
    overrides: dict[str, Any],
    keys: Path | None,
    host: str,
    port: int,
    local: bool,
    address: str | None,
) -> None:
    """Serve until Ctrl-C.

    Args:
        config: YAML file.
        models: names that replace those of the file.
        overrides: fields of each of these models.

    Raises:
        BadInput: an option is wrong, or the extra ``serve`` is not installed.
    """
    try:
        from lotts_search.serve.config import read_config
        from lotts_search.serve.keys import Keys
    except ImportError as error:
        raise BadInput(
            f"lotts-search serve needs the extra serve ({error}): pip install 'lotts-search[serve]'"
        ) from error
    if local and address is not None:
        raise BadInput("--local and --address exclude each other")
    if local and overrides.get("generators", 1) != 1:
        raise BadInput("more than one generator needs Ray: leave out --local")
    given: dict[str, Any] = {"keys": keys} if keys is not None else {}
    if models or overrides:
        given["models"] = [{"name": name} | overrides for name in models or ["shapes-sd"]]
    if host in LOCAL_NAMES:
        given["hosts"] = list(LOCAL_NAMES)
    settings = read_config(config, given)
    keyed = bool(Keys.load(settings.keys))
    if host not in LOCAL_NAMES and not keyed:
        notice(f"everybody who reaches {host}:{port} may use this server: --keys FILE asks for API keys")
    names = ", ".join(model.name for model in settings.models)
    Console(stderr=True).print(f"serving {names} at http://{host}:{port}, Ctrl-C stops", soft_wrap=True)
    if local:
        from lotts_search.serve.local import run as serve

        serve(settings, host, port)
    else:
        from lotts_search.serve.deployment import run as deploy

        with terminable():  # Ray stops its processes then
            deploy(settings, host, port, address)
