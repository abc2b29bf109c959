"""The endpoint in this process: uvicorn and local pools, without Ray."""

from __future__ import annotations

import uvicorn

from lotts_search.serve.config import Config
from lotts_search.serve.http import create_app
from lotts_search.serve.service import Service, local_pools


def server(service: Service, host: str, port: int) -> uvicorn.Server:
    """Return a server of the application; ``run()`` serves until it is told to stop."""
    return uvicorn.Server(
        uvicorn.Config(create_app(service), host=host, port=port, log_level="warning", timeout_graceful_shutdown=5)
    )


def run(config: Config, host: str, port: int) -> None:
    """Serve until Ctrl-C."""
    service = Service(config, local_pools(config))
    server(service, host, port).run()
