"""A short conversation with a running scheduler: say hello as an administrator, ask, say good-bye.

The commands that look (`status`, `explain`) or ask for something (`cancel`, `stop`) submit nothing, so they need
neither the client's thread nor its bookkeeping: a dealer, and one message at a time.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import TracebackType
from typing import Any

from trio_sched.cli.options import ONLOOKER
from trio_sched.client.options import task_number
from trio_sched.errors import ConfigError, NoSchedulerError, TrioSchedError
from trio_sched.transport.connection import find
from trio_sched.transport.reach import describe_unanswered
from trio_sched.transport.zmq_blocking import BlockingDealer
from trio_sched.wire import native

ANSWER_TIMEOUT_S = 10.0


class Conversation:
    """With the scheduler that `where` names: a connection file or a name; None: the only one that runs."""

    def __init__(self, where: str | Path | None = None, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        """:raises NoSchedulerError: none was found, or it does not answer.
        :raises ConnectionFileError: the file that was named cannot be used.
        """
        self.connection = find(where, "client")
        self.timeout_s = timeout_s
        self._requests = 0
        self._dealer = BlockingDealer(self.connection)
        try:
            token, pid = self.connection.token, os.getpid()
            self._send(native.Hello(role="client", token=token, name=ONLOOKER, pid=pid, admin=True))
            self._expect(native.Welcome)
        except BaseException:
            self._dealer.close()
            raise

    def __enter__(self) -> Conversation:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._send(native.Bye())
        self._dealer.close()

    def query(self, what: str, task: int | str = 0) -> Any:
        """The scheduler's answer: plain data.

        :raises TrioSchedError: it refused to answer, and says why.
        """
        self._requests += 1
        self._send(native.Query(request=self._requests, what=what, task=task))
        reply = self._expect(native.Reply)
        if reply.error:
            raise TrioSchedError(reply.error)
        return reply.data

    def cancel(self, tasks: list[int]) -> None:
        """Ask for these tasks to be cancelled; an ordinary answer follows to whoever submitted them."""
        self._send(native.Cancel(tasks=tasks))

    def stop(self, reason: str) -> None:
        """Ask the scheduler to shut down, as SIGTERM would, and wait until it says so."""
        self._send(native.Stop(reason=reason))
        self._expect(native.Closing)

    def _send(self, message: native.FromClient) -> None:
        self._dealer.send([native.encode(message)])

    def _expect(self, kind: Any) -> Any:
        """The next message of that kind; what else a client hears is passed over."""
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
                raise NoSchedulerError(f"the scheduler {self.connection.name!r} refused us: {message.message}")
            if isinstance(message, native.Closing):
                raise NoSchedulerError(f"the scheduler {self.connection.name!r} is shutting down")


def parse_id(text: str) -> int:
    """A task's number from its id as people write it: "3-17".

    :raises ConfigError: it is not of that form.
    """
    try:
        return task_number(text)
    except ValueError:
        raise ConfigError(f"task: {text!r} is not a task id; one looks like 3-17, as `future.task_id` says") from None


def is_message_id(text: str) -> bool:
    """Whether it looks like what ipyparallel calls a task: a session of 32 digits (perhaps with a dash), and more."""
    return re.fullmatch(r"[0-9a-fA-F-]{32,36}(_\d+)*", text) is not None
