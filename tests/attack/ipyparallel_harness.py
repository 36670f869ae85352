"""`trio-sched ipcontroller` in its own process, with real engines and an honest client of ipyparallel."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil

from tests.attack.harness import HonestClient, poll, wait_or_kill
from trio_sched.errors import TrioSchedError

SECRETS = ("key", "curve_serverkey")


class IppServer:
    """The controller and its engines, with the part of the interface of `harness.Server` that `HonestClient` needs."""

    def __init__(self, *arguments: str, engines: int = 2) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="ipp-", dir="/tmp"))
        self.directory.chmod(0o755)  # the connection files inside are private
        self.engine_count = engines
        self._arguments = arguments

    def __enter__(self) -> IppServer:
        self.log_path = self.directory / "log.txt"
        environment = {**os.environ, "IPYTHONDIR": str(self.directory / "ipython")}
        command = [sys.executable, "-m", "trio_sched", "ipcontroller", f"--profile-dir={self.directory}"]
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *self._arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )
        self._engines: list[subprocess.Popen[bytes]] = []
        try:
            poll(lambda: self.client_file.exists() or not self.is_running, "connection files")
            assert self.is_running, self.log
            engine = [sys.executable, "-W", "ignore", "-m", "ipyparallel.engine", f"--file={self.engine_file}"]
            self._engines = [
                subprocess.Popen(
                    engine,
                    env=environment,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
                for _ in range(self.engine_count)
            ]
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        for engine in self._engines:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(engine.pid, 9)
            engine.wait()
        if self.is_running:
            self.process.terminate()
            wait_or_kill(self.process, 20)
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def client_file(self) -> Path:
        return self.directory / "security" / "ipcontroller-client.json"

    @property
    def engine_file(self) -> Path:
        return self.directory / "security" / "ipcontroller-engine.json"

    @property
    def ports(self) -> str:
        """The connection files without secrets, which the attacker gets, as JSON."""
        files = {"client": self.client_file, "engine": self.engine_file}
        inside = {side: json.loads(path.read_text()) for side, path in files.items()}
        return json.dumps(
            {side: {name: at for name, at in one.items() if name not in SECRETS} for side, one in inside.items()}
        )

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def rss_bytes(self) -> int:
        return int(psutil.Process(self.process.pid).memory_info().rss)


class _Result:
    def __init__(self, result: Any) -> None:
        self._result = result

    def result(self, timeout_s: float) -> object:
        import ipyparallel

        try:
            return self._result.get(timeout_s)
        except ipyparallel.TimeoutError as error:
            raise TimeoutError(str(error)) from None
        except ipyparallel.error.IPythonError as error:
            raise TrioSchedError(repr(error)) from error


class _View:
    """A load-balanced view with the interface of an executor that `HonestClient` needs."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self._view = client.load_balanced_view()

    def submit(self, function: Any, *args: Any) -> _Result:
        return _Result(self._view.apply(function, *args))

    def shutdown(self, *, cancel_futures: bool) -> None:
        self.client.close()


class IppHonestClient(HonestClient):
    """ipyparallel's own client, which runs one task after the other."""

    server: Any

    def __init__(self, server: IppServer) -> None:
        super().__init__(server)  # type: ignore[arg-type]  # an IppServer has the parts of a Server that are used here

    def __enter__(self) -> IppHonestClient:
        import ipyparallel

        self.real = ipyparallel.Client(str(self.server.client_file), timeout=40)
        self.real.wait_for_engines(self.server.engine_count, timeout=60, interactive=False)
        self.client: Any = _View(self.real)
        self.round_trips(0.5)
        return self
