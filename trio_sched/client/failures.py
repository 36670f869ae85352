"""The failed tasks of an asynchronous client whose errors nobody has looked at: leaving the client's block raises them.

A task group raises the errors of its own tasks; this is for those that were submitted outside of one. An error counts
as looked at when `await future`, `future.result()` or `future.value` raised it, or `future.error` returned it; when
`map` or `gather` raised another one in its place; or when the task was cancelled.
"""

from __future__ import annotations

from typing import Any

from trio_sched.client.async_future import AsyncFuture
from trio_sched.errors import ImpossibleDependency

KEPT_FAILURES = 1000
"""Failed tasks that are kept to be raised; of a client that lives long and looks at none, the first ones."""


class UnseenFailures:
    """The failed tasks of one client whose errors nobody has looked at."""

    def __init__(self) -> None:
        self._failed: dict[AsyncFuture[Any], None] = {}

    def note_end(self, future: AsyncFuture[Any]) -> None:
        """Keep a task that has failed; one that was cancelled has not."""
        if not future.succeeded and not future.cancelled() and len(self._failed) < KEPT_FAILURES:
            self._failed[future] = None

    def note_seen(self, future: AsyncFuture[Any]) -> None:
        """Forget a task, whose error is somebody else's business from now on."""
        self._failed.pop(future, None)
        future.owner = None

    def error(self) -> BaseException | None:
        """What leaving the block raises: the error of the one task, a group of the errors of several, or None.

        Errors that only follow from others are left out.
        """
        errors = causes([], list(self._failed))
        if len(errors) > 1:
            return BaseExceptionGroup("tasks of the client failed, and nobody looked at their errors", errors)
        return errors[0] if errors else None


def causes(raised: list[BaseException], failed: list[AsyncFuture[Any]]) -> list[BaseException]:
    """The block's errors and the tasks', each once, and without those tasks that failed only because another did."""
    errors = [future.error for future in failed if future.error is not None]
    causes = [error for error in errors if not isinstance(error, ImpossibleDependency)]
    consequences = {id(error) for error in errors if causes and isinstance(error, ImpossibleDependency)}
    return list({id(error): error for error in [*raised, *errors] if id(error) not in consequences}.values())
