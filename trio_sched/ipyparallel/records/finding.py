"""The query language of `Client.db_query`: MongoDB's, as far as records need it.

    {"completed": None, "queue": "task", "submitted": {"$gt": "2026-01-01T00:00:00Z"}, "label": {"$glob": "fit*"}}

A plain value must be equal. A comparison with a field that is not set is false, not an error: tasks that are not
completed are not "completed before" anything. An operator or a shape that does not exist is an error that names it.

`$in` and `$nin` test membership as Python's `in` does: in a string, they look for substrings. Only text can be in a
string, so that `{"label": {"$nin": ""}}` finds the records with a label.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from trio_sched.ipyparallel.records.record import DATES, Record, utc, value

Test: TypeAlias = Callable[[Any], bool]


class QueryError(ValueError):
    """A query that cannot be understood."""


def _compared(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def test(field: Any, wanted: Any) -> bool:
        if field is None or wanted is None:
            return False
        try:
            return compare(field, wanted)
        except TypeError:  # text and a number have no order
            return False

    return test


def _membership(operator: str, expected: bool) -> Callable[[Any, Any], bool]:
    def test(field: Any, wanted: Any) -> bool:
        if not isinstance(wanted, (str, list, tuple, Mapping)):
            raise QueryError(f"{operator} wants a list or a string, not {wanted!r}")
        try:
            return (field in wanted) is expected
        except TypeError:  # only text can be in a string, and a list cannot be a key
            return False

    return test


def _all(field: Any, wanted: Any) -> bool:
    """A list must hold each of them; a single value must be each of them, or be in it if that is a list itself."""
    return all(
        one == field or (isinstance(field, list) and one in field) or (isinstance(one, list) and field in one)
        for one in _list(wanted)
    )


def _mod(field: Any, wanted: Any) -> bool:
    match wanted:
        case [int(divisor), int(remainder)] if divisor:
            return isinstance(field, (int, float)) and field % divisor == remainder
    raise QueryError(f"$mod wants [divisor, remainder], not {wanted!r}")


def _glob(field: Any, wanted: Any) -> bool:
    if not isinstance(wanted, str):
        raise QueryError(f"$glob wants a pattern, not {wanted!r}")
    return isinstance(field, str) and fnmatch.fnmatchcase(field, wanted)


def _list(wanted: Any) -> Sequence[Any]:
    if not isinstance(wanted, (list, tuple)):
        raise QueryError(f"$all wants a list, not {wanted!r}")
    return wanted


OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "$eq": lambda field, wanted: field == wanted,
    "$ne": lambda field, wanted: field != wanted,
    "$lt": _compared(lambda field, wanted: field < wanted),
    "$lte": _compared(lambda field, wanted: field <= wanted),
    "$gt": _compared(lambda field, wanted: field > wanted),
    "$gte": _compared(lambda field, wanted: field >= wanted),
    "$in": _membership("$in", expected=True),
    "$nin": _membership("$nin", expected=False),
    "$all": _all,
    "$mod": _mod,
    "$exists": lambda field, wanted: (field is not None) == bool(wanted),
    "$glob": _glob,
}


class Query:
    """A query, checked and ready to be put to records."""

    def __init__(self, query: Any) -> None:
        """:raises QueryError: it makes no sense; the message says what of it."""
        if not isinstance(query, Mapping):
            raise QueryError(f"a query is a dict, not {query!r}")
        self.conditions: list[tuple[str, str, Any]] = []
        """(field, operator, what it is compared with), all of which must hold."""
        for field, condition in query.items():
            if isinstance(condition, Mapping) and any(str(key).startswith("$") for key in condition):
                self._add(field, condition)
            else:
                self._add(field, {"$eq": condition})

    def _add(self, field: str, condition: Mapping[str, Any]) -> None:
        for operator, wanted in condition.items():
            if operator not in OPERATORS:
                raise QueryError(f"there is no operator {operator!r}; there are {', '.join(OPERATORS)}")
            wanted = _dates(wanted) if field in DATES else wanted
            OPERATORS[operator](None, wanted)  # whether it makes sense at all
            self.conditions.append((field, operator, wanted))

    def matches(self, record: Record) -> bool:
        """Whether the record is one of those asked for."""
        return all(OPERATORS[operator](value(record, field), wanted) for field, operator, wanted in self.conditions)

    def ids(self) -> Sequence[str] | None:
        """The only ids that can match, when the query says so: a shortcut for the commonest one."""
        for field, operator, wanted in self.conditions:
            if field == "msg_id" and operator == "$in" and not isinstance(wanted, str):
                return list(dict.fromkeys(one for one in wanted if isinstance(one, str)))
            if field == "msg_id" and operator == "$eq":
                return [wanted] if isinstance(wanted, str) else []
        return None


def _dates(wanted: Any) -> Any:
    """Dates in the form in which records keep theirs; what is no date is left alone."""
    if isinstance(wanted, (list, tuple)):
        return [_dates(one) for one in wanted]
    return utc(wanted) or wanted
