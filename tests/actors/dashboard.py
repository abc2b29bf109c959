"""A stand-in for the dashboard of a Ray cluster: it takes jobs, and the test decides how they go."""

from __future__ import annotations

import asyncio
import io
import threading
import zipfile
from collections.abc import Awaitable, Callable
from typing import Any, Self

import ray
from aiohttp import web


class Dashboard:
    """A context that serves jobs on a free port of this machine.

    Attributes:
        jobs: the jobs, as Ray's API describes them, by their submission ids.
        files: names and contents of the files of the last package.
        log: what every job prints.
        ends: state of a job after its log was read: status, exit code, message.
        breaks: how many connections to the log break after ten characters.
        refuses: status of all answers, such as 401; 0 = none is refused.
    """

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.log = "first line\nsecond line\n"
        self.ends: tuple[str, int | None, str] = ("SUCCEEDED", 0, "")
        self.breaks = self.refuses = 0

    def __enter__(self) -> Self:
        app = web.Application(middlewares=[self._guard], client_max_size=1 << 24)
        app.router.add_get("/api/version", self._version)
        app.router.add_get("/api/packages/{protocol}/{name}", self._missing)
        app.router.add_put("/api/packages/{protocol}/{name}", self._package)
        app.router.add_post("/api/jobs/", self._submit)
        app.router.add_get("/api/jobs/", self._list)
        app.router.add_get("/api/jobs/{job}", self._info)
        app.router.add_post("/api/jobs/{job}/stop", self._stop)
        app.router.add_get("/api/jobs/{job}/logs/tail", self._tail)
        self._loop, ready = asyncio.new_event_loop(), threading.Event()
        self._runner = web.AppRunner(app, shutdown_timeout=0)

        async def start() -> None:
            await self._runner.setup()
            await web.TCPSite(self._runner, "127.0.0.1", 0).start()
            ready.set()

        def serve() -> None:
            self._loop.run_until_complete(start())
            self._loop.run_forever()

        self._thread = threading.Thread(target=serve)
        self._thread.start()
        assert ready.wait(30)
        self.address = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    def __exit__(self, *error: object) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def job(self) -> dict[str, Any]:
        """The last job."""
        return list(self.jobs.values())[-1]

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        return web.Response(status=self.refuses, text="refused") if self.refuses else await handler(request)

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "4", "ray_version": ray.__version__, "ray_commit": "", "session_name": ""})

    async def _missing(self, request: web.Request) -> web.Response:
        return web.Response(status=404)

    async def _package(self, request: web.Request) -> web.Response:
        with zipfile.ZipFile(io.BytesIO(await request.read())) as package:
            self.files = {name: package.read(name) for name in package.namelist() if not name.endswith("/")}
        return web.Response()

    async def _submit(self, request: web.Request) -> web.Response:
        asked = await request.json()
        job = f"job-{len(self.jobs)}"
        kept = {key: asked[key] for key in ("entrypoint", "metadata", "runtime_env")}
        self.jobs[job] = {"type": "SUBMISSION", "submission_id": job, "status": "RUNNING", **kept}
        return web.json_response({"job_id": job, "submission_id": job})

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response(list(self.jobs.values()))

    async def _info(self, request: web.Request) -> web.Response:
        return web.json_response(self.jobs[request.match_info["job"]])

    async def _stop(self, request: web.Request) -> web.Response:
        self.ends = ("STOPPED", None, "")
        return web.json_response({"stopped": True})

    async def _tail(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        if self.breaks:
            self.breaks -= 1
            await socket.send_str(self.log[:10])
            assert request.transport is not None
            request.transport.abort()
            return socket
        for line in self.log.splitlines(keepends=True):
            await socket.send_str(line)
        status, code, message = self.ends
        self.jobs[request.match_info["job"]] |= {"status": status, "driver_exit_code": code, "message": message}
        await socket.close()
        return socket
