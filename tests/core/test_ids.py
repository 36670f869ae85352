"""Ids of tasks: their parts, their printed form, and the two types."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_sched.core import ids
from trio_sched.core.ids import (
    MAX_COUNTER,
    MAX_ID,
    counter_of,
    expand_task_id,
    format_task_id,
    is_foreign,
    is_native,
    is_task_id,
    make_task_id,
    parse_task_id,
    session_base,
    session_of,
)

SESSIONS = st.integers(1, MAX_ID >> ids.COUNTER_BITS)
COUNTERS = st.integers(0, MAX_COUNTER)


@given(SESSIONS, COUNTERS)
def test_r01_a_task_id_holds_its_session_and_its_counter(session: int, counter: int) -> None:
    task = make_task_id(session, counter)
    assert (session_of(task), counter_of(task)) == (session, counter)
    assert task == session_base(session) | counter
    assert is_task_id(task)


@given(SESSIONS, COUNTERS)
def test_a_printed_task_id_is_parsed_again(session: int, counter: int) -> None:
    task = make_task_id(session, counter)
    assert format_task_id(task) == f"{session}-{counter}"
    assert parse_task_id(format_task_id(task)) == task


@given(SESSIONS, SESSIONS, COUNTERS)
def test_an_abbreviated_id_is_one_of_the_own_session(session: int, other: int, counter: int) -> None:
    assert expand_task_id(session, counter) == make_task_id(session, counter)
    assert expand_task_id(session, make_task_id(other, counter)) == make_task_id(other, counter)


@pytest.mark.parametrize(
    "text", ["", "17", "3-", "-17", "3-17-1", "3--17", "a-1", "3-4294967296", "0-17", f"{MAX_ID}-1"]
)
def test_text_that_is_not_a_task_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a task id; task ids look like '3-17'"):
        parse_task_id(text)


def test_ids_that_are_not_whole_native_ones_are_printed_as_they_are() -> None:
    assert [format_task_id(task) for task in (17, MAX_COUNTER, "3e8c-17")] == ["17", str(MAX_COUNTER), "3e8c-17"]


@pytest.mark.parametrize("number", [-1, 0, 17, MAX_COUNTER, MAX_ID + 1])
def test_a_number_without_a_session_or_out_of_range_is_not_a_task_id(number: int) -> None:
    assert not is_task_id(number)


def test_the_type_of_an_id_says_who_made_it() -> None:
    assert [is_native(each) for each in (3, "3")] == [True, False]
    assert [is_foreign(each) for each in (3, "3")] == [False, True]
