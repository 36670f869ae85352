"""Ids of tasks, client sessions and engines: how they are made, printed and parsed.

The type of an id says who made it:

- *Native* ids are ints. A client session and an engine registration have numbers of the same series. A task id holds
  the number of its session and a counter of that session: `session << COUNTER_BITS | counter`, counters from 1. So the
  scheduler knows the owner of a task without a look-up, and tells a task that it has forgotten from one that was never
  submitted (R1, R5). On the wire a client may abbreviate the id of a task of its own to the counter. Printed, the two
  parts stand side by side: "3-17".
- *Foreign* ids are strings. They are made by a front whose protocol has ids of its own and no sessions with counters.
  The core only compares them.

All ids of one front have one type, so the type of a single id in an effect says which front the effect is for.

A client is a session, not a socket (R15). An engine id is one registration of one engine: an engine that registers
again gets another id, so an engine id also names the session whose results count (R17).

No other module of the package shifts, masks, splits or formats ids.
"""

from __future__ import annotations

from typing import Final, TypeAlias, TypeGuard

TaskId: TypeAlias = int | str
ClientId: TypeAlias = int | str
EngineId: TypeAlias = int | str

#: Bits of a native task id that hold the counter; the session number is above them.
COUNTER_BITS: Final = 32
#: The largest counter of a task within its session.
MAX_COUNTER: Final = (1 << COUNTER_BITS) - 1
#: The largest native id of a task, number of a session, or count of messages.
MAX_ID: Final = (1 << 62) - 1


# ---- native and foreign ----------------------------------------------------------------------------------------------


def is_native(any_id: int | str) -> TypeGuard[int]:
    """Whether the id is one of the native wire protocol: a number."""
    return isinstance(any_id, int)


def is_foreign(any_id: int | str) -> TypeGuard[str]:
    """Whether the id is one of a front with ids of its own: a string."""
    return isinstance(any_id, str)


# ---- the parts of a native task id -----------------------------------------------------------------------------------


def make_task_id(session: int, counter: int) -> int:
    """The id of the session's task with this counter."""
    return session << COUNTER_BITS | counter


def session_base(session: int) -> int:
    """The part that all task ids of the session share: `session_base(session) | counter` is a task id.

    Loops over many tasks of one session use it in place of `make_task_id`.
    """
    return session << COUNTER_BITS


def session_of(task: int) -> int:
    """The number of the session that submitted the task; 0 for an abbreviated id."""
    return task >> COUNTER_BITS


def counter_of(task: int) -> int:
    """The task's counter within its session."""
    return task & MAX_COUNTER


def is_task_id(number: int) -> bool:
    """Whether the number is a whole task id: it names a session, and is in range."""
    return MAX_COUNTER < number <= MAX_ID


def expand_task_id(session: int, task: int) -> int:
    """The whole id of a task that a client of `session` names, perhaps abbreviated to its counter."""
    return task if task > MAX_COUNTER else session << COUNTER_BITS | task


# ---- text ------------------------------------------------------------------------------------------------------------


def format_task_id(task: TaskId) -> str:
    """A task id as people read it: "3-17" for a native one; other ids as they are."""
    if isinstance(task, int) and task > MAX_COUNTER:
        return f"{task >> COUNTER_BITS}-{task & MAX_COUNTER}"
    return str(task)


def parse_task_id(text: str) -> int:
    """The native task id that `format_task_id` prints as `text`.

    :raises ValueError: the text is not a session number and a counter with "-" between them.
    """
    session, dash, counter = text.partition("-")
    if dash and session.isdecimal() and counter.isdecimal() and int(counter) <= MAX_COUNTER:
        task = make_task_id(int(session), int(counter))
        if is_task_id(task):
            return task
    raise ValueError(f"{text!r} is not a task id; task ids look like '3-17'")
