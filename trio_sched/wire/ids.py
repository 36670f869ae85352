"""Ids of native tasks, for clients and engines, which do not import the core; `core.ids` defines them."""

from __future__ import annotations

from trio_sched.core.ids import (
    MAX_COUNTER,
    MAX_ID,
    counter_of,
    format_task_id,
    is_task_id,
    make_task_id,
    parse_task_id,
    session_of,
)

__all__ = [
    "MAX_COUNTER",
    "MAX_ID",
    "counter_of",
    "format_task_id",
    "is_task_id",
    "make_task_id",
    "parse_task_id",
    "session_of",
]
