"""The Dask scheduler that `Client.become_dask` requests: at most one, in a process of its own (dask_scheduler.py).

That process imports `distributed`. This process does not, and shares no event loop and no interpreter with it.
"""

from __future__ import annotations

import sys

import msgspec
import trio

from trio_sched.logs import get_logger
from trio_sched.wire.jupyter import Json, error_content

log = get_logger(__name__)
COMMAND = (sys.executable, "-m", "trio_sched.ipyparallel.dask_scheduler")
#: Time for the Dask scheduler to close its connections before its process is killed.
STOP_TIMEOUT_S = 5.0
ANSWER_LIMIT_BYTES = 1 << 16
#: The port of Dask's status pages, as Dask chooses it; Dask takes another one if it is in use.
DASHBOARD_PORT = 8787


class DaskScheduler:
    """Starts and stops the process of a Dask scheduler."""

    def __init__(self, host: str | None) -> None:
        """`host`: the address to bind when a client names none; None: all addresses, as Dask does."""
        self._host = host
        self._nursery: trio.Nursery
        self._changing = trio.Lock()
        self._process: trio.Process | None = None
        self._content: Json = {}
        self._ended = trio.Event()
        self._killing = trio.CancelScope()

    async def run(self) -> None:
        """Supervise the process until cancelled, and kill it then."""
        async with trio.open_nursery() as self._nursery:
            await trio.sleep_forever()

    async def start(self, arguments: Json) -> Json:
        """Start a Dask scheduler with these arguments, unless one is running.

        Returns the content of the reply to become_dask_request: addresses, or the error.
        """
        async with self._changing:
            if self._process is None:
                self._content = await self._nursery.start(self._supervise, self._with_defaults(arguments))
            return self._content

    async def stop(self) -> Json:
        """Stop the Dask scheduler, if one is running. Returns the content of the reply to stop_distributed_request."""
        async with self._changing:
            if self._process is not None and self._process.stdin is not None:
                await self._process.stdin.aclose()
                with trio.move_on_after(STOP_TIMEOUT_S):
                    await self._ended.wait()
                self._killing.cancel()
                await self._ended.wait()
            return {"status": "ok"}

    def _with_defaults(self, arguments: Json) -> Json:
        if self._host is None or "host" in arguments or "interface" in arguments:
            return arguments
        defaults: Json = {"host": self._host}
        if "dashboard_address" not in arguments:  # the HTTP server would bind all addresses
            defaults |= {"dashboard_address": f"{self._host}:{DASHBOARD_PORT}", "dashboard": False}
        return {**defaults, **arguments}

    async def _supervise(self, arguments: Json, *, task_status: trio.TaskStatus[Json]) -> None:
        """Start the process and wait for its end. `task_status.started` gets the content of the reply."""
        process = await trio.lowlevel.open_process(COMMAND, stdin=-1, stdout=-1)
        assert process.stdin is not None
        assert process.stdout is not None
        ended = trio.Event()
        try:
            with trio.CancelScope() as killing:
                content = await _exchange(process, msgspec.json.encode(arguments) + b"\n")
                running = content["status"] == "ok"
                if running:
                    self._process, self._ended, self._killing = process, ended, killing
                    log.warning(
                        "a Dask scheduler accepts connections without authentication", address=content["address"]
                    )
                task_status.started(content)
                if running:
                    await process.wait()
        finally:
            if self._process is process:
                self._process = None
            process.kill()
            with trio.CancelScope(shield=True):
                await process.stdin.aclose()
                await process.stdout.aclose()
                await process.wait()
            ended.set()
            log.info("the Dask scheduler ended", exit_code=process.returncode)


async def _exchange(process: trio.Process, line: bytes) -> Json:
    """Send the arguments to the process. Returns its answer as the content of a reply."""
    assert process.stdin is not None
    assert process.stdout is not None
    answer = b""
    try:
        await process.stdin.send_all(line)
        while not answer.endswith(b"\n") and len(answer) < ANSWER_LIMIT_BYTES:
            piece = await process.stdout.receive_some()
            if not piece:
                break
            answer += piece
        content: Json = msgspec.json.decode(answer)
    except (trio.BrokenResourceError, msgspec.DecodeError):
        return error_content(
            "RuntimeError", "the process of the Dask scheduler ended at its start; see the log of the controller"
        )
    if "ename" in content:
        return error_content(content["ename"], f"the Dask scheduler cannot start: {content['evalue']}")
    return {"status": "ok", **content}
