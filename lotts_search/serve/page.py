"""The page at ``/``: static files, with headers that keep the scripts and frames of others out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from lotts_search import report

FOLDER = Path(__file__).parent / "web"
COLOURS = Path(report.__file__).parent / "templates" / "colours.css"
"""The colours of reports, which the page shares."""
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data: blob:",
    "connect-src": "'self'",
    "form-action": "'self'",
    "base-uri": "'none'",
    "frame-ancestors": "'none'",
    "require-trusted-types-for": "'script'",
    "trusted-types": "'none'",
}
"""What the page may load and run: its own files, and images that it is sent or makes."""
HEADERS = {
    "Content-Security-Policy": "; ".join(f"{name} {sources}" for name, sources in POLICY.items()),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class Files(StaticFiles):
    """Static files with :data:`HEADERS`."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(HEADERS)
        return response

    def lookup_path(self, path: str) -> tuple[str, Any]:
        """Return where a file lies; the colours lie with the reports."""
        if path == COLOURS.name:
            return str(COLOURS), COLOURS.stat()
        return super().lookup_path(path)


def add_page(app: FastAPI) -> None:
    """Serve the page at ``/`` and its files below ``/web``."""
    files = Files(directory=FOLDER)

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page(request: Request) -> Response:
        return await files.get_response("index.html", request.scope)

    app.mount("/web", files)
