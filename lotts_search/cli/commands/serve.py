"""``lotts-search serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lotts_search.cli import options as o

SERVER = "Server"


def serve(
    config: Annotated[
        Path | None,
        typer.Option("--config", help="YAML file with the fields of docs/serve.md.", rich_help_panel=SERVER),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="A model as for `generate`; repeatable, the first is the default [shapes-sd].",
            rich_help_panel=SERVER,
        ),
    ] = None,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen at; 0.0.0.0 = all.", rich_help_panel=SERVER)
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, rich_help_panel=SERVER)] = 8000,
    keys: Annotated[
        Path | None, typer.Option("--keys", help="File of API keys, NAME KEY a line.", rich_help_panel=SERVER)
    ] = None,
    local: o.Local = False,
    address: o.Address = None,
    generators: o.Generators = None,
    device: o.Device = "cpu",
) -> None:
    """Serve searches over HTTP, with OpenAI's Images API.

    Clients of that API work unmodified. The server runs until Ctrl-C, on Ray Serve or with --local in this process, and listens on
    this machine only unless told otherwise. It needs the extra `serve`: pip install 'lotts-search[serve]'.

    Examples:

        lotts-search serve --local

        lotts-search serve --model shapes-sd --model shapes-flux --keys keys.txt --port 8080

        curl http://127.0.0.1:8000/v1/images/generations -H 'Content-Type: application/json' -d '{"prompt": "center red star on gray", "nfe": 200}'
    """
    from lotts_search.cli.run_serve import run

    overrides: dict[str, Any] = {"generators": generators} if generators else {}
    if device != "cpu":
        overrides["load"] = {"device": device}
    run(config, model or [], overrides, keys, host, port, local, address)
