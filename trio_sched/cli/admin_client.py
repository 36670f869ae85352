"""A client for the commands that query or control a running scheduler.

These commands submit no tasks, so they need neither the thread nor the bookkeeping of `Client`: they send a message and
wait for its answer.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

from trio_sched.cli.options import ADMIN_NAME
from trio_sched.errors import NoSchedulerError, TrioSchedError
from trio_sched.transport.connection_info import find_connection, host_name
from trio_sched.transport.reachability import describe_unanswered
from trio_sched.transport.zmq_blocking import BlockingDealer
from trio_sched.wire import native
from trio_sched.wire.hello import build_hello

ANSWER_TIMEOUT_S = 10.0


class AdminClient:
    """A session of an administrator with a scheduler; a context manager that ends the session.

    `where` is a connection file or a scheduler's name; None: the only scheduler that runs.

    :raises NoSchedulerError: no scheduler was found, or it does not answer within `timeout_s`.
    :raises ConnectionFileError: the connection file cannot be used.
    """

    def __init__(self, where: str | Path | None = None, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self.connection = find_connection(where, "client")
        self.timeout_s = timeout_s
        self._request_count = 0
        self._dealer = BlockingDealer(self.connection)
        try:
            self._send(build_hello("client", self.connection.token, host=host_name(), name=ADMIN_NAME, admin=True))
            self._receive(native.Welcome)
        except BaseException:
            self._dealer.close()
            raise

    def __enter__(self) -> AdminClient:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._send(native.Bye())
        self._dealer.close()

    def query(self, what: str, task: int | str = 0) -> Any:
        """Return the scheduler's answer to a query such as "status", as plain data.

        :raises TrioSchedError: the scheduler answered with an error.
        :raises NoSchedulerError: the scheduler did not answer, or shuts down.
        """
        self._request_count += 1
        self._send(native.Query(request=self._request_count, what=what, task=task))
        reply = self._receive(native.Reply)
        if reply.error:
            raise TrioSchedError(reply.error)
        return reply.data

    def cancel(self, tasks: list[int]) -> None:
        """Request the cancellation of tasks. Their results go to the clients that submitted them."""
        self._send(native.Cancel(tasks=tasks))

    def stop(self, reason: str) -> None:
        """Request a shutdown, as SIGTERM does, and wait for the confirmation.

        :raises NoSchedulerError: the scheduler did not answer.
        """
        self._send(native.Stop(reason=reason))
        self._receive(native.Closing)

    def _send(self, message: native.FromClient) -> None:
        self._dealer.send([native.encode(message)])

    def _receive(self, kind: Any) -> Any:
        """Return the next message of a type; skip messages of other types, except errors and a shutdown."""
        while True:
            frames = self._dealer.receive(self.timeout_s)
            if frames is None:
                name, address = self.connection.name, self.connection.address
                raise NoSchedulerError(
                    f"the scheduler {name!r} at {address} did not answer in {self.timeout_s:g} s"
                    f"{describe_unanswered(address)}"
                )
            message = native.decode_to_client(frames[0])
            if isinstance(message, kind):
                return message
            if isinstance(message, native.Error):
                raise NoSchedulerError(
                    f"the scheduler {self.connection.name!r} refused the connection: {message.message}"
                )
            if isinstance(message, native.Closing):
                raise NoSchedulerError(f"the scheduler {self.connection.name!r} is shutting down")
