"""The query language of `Client.db_query`: the part of MongoDB's that records need.

    {"completed": None, "queue": "task", "submitted": {"$gt": "2026-01-01T00:00:00Z"}, "label": {"$glob": "fit*"}}

A plain value must be equal. A comparison with a field that is not set is false, not an error: an unfinished task was
not "completed before" any date. An unknown operator, or a value of the wrong shape, is an error that names it.

`$in` and `$nin` test membership as Python's `in` does: in a string, they look for substrings. Only text can be in a
string, so that `{"label": {"$nin": ""}}` finds the records with a label.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trio_sched.ipyparallel.records.record import DATES, Record, utc, value


class InvalidQueryError(ValueError):
    """A query has an unknown operator, or a value of the wrong shape; the message names it."""


def _comparison(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
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
            raise InvalidQueryError(f"{operator} wants a list or a string, not {wanted!r}")
        try:
            return (field in wanted) is expected
        except TypeError:  # only text can be in a string, and a list cannot be a key
            return False

    return test


def _all(field: Any, wanted: Any) -> bool:
    """Return whether the field equals each item of `wanted`, or contains it, or is contained in it."""
    return all(
        one == field or (isinstance(field, list) and one in field) or (isinstance(one, list) and field in one)
        for one in _checked_list(wanted)
    )


def _mod(field: Any, wanted: Any) -> bool:
    match wanted:
        case [int(divisor), int(remainder)] if divisor:
            return isinstance(field, (int, float)) and field % divisor == remainder
    raise InvalidQueryError(f"$mod wants [divisor, remainder], not {wanted!r}")


def _glob(field: Any, wanted: Any) -> bool:
    if not isinstance(wanted, str):
        raise InvalidQueryError(f"$glob wants a pattern, not {wanted!r}")
    return isinstance(field, str) and fnmatch.fnmatchcase(field, wanted)


def _checked_list(wanted: Any) -> Sequence[Any]:
    if not isinstance(wanted, (list, tuple)):
        raise InvalidQueryError(f"$all wants a list, not {wanted!r}")
    return wanted


OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "$eq": lambda field, wanted: field == wanted,
    "$ne": lambda field, wanted: field != wanted,
    "$lt": _comparison(lambda field, wanted: field < wanted),
    "$lte": _comparison(lambda field, wanted: field <= wanted),
    "$gt": _comparison(lambda field, wanted: field > wanted),
    "$gte": _comparison(lambda field, wanted: field >= wanted),
    "$in": _membership("$in", expected=True),
    "$nin": _membership("$nin", expected=False),
    "$all": _all,
    "$mod": _mod,
    "$exists": lambda field, wanted: (field is not None) == bool(wanted),
    "$glob": _glob,
}


class RecordQuery:
    """A query that was checked, and can be matched with records."""

    def __init__(self, query: Any) -> None:
        """:raises InvalidQueryError: the query is malformed."""
        if not isinstance(query, Mapping):
            raise InvalidQueryError(f"a query is a dict, not {query!r}")
        #: (field, operator, wanted value); all of them must hold.
        self.conditions: list[tuple[str, str, Any]] = []
        for field, condition in query.items():
            if isinstance(condition, Mapping) and any(str(key).startswith("$") for key in condition):
                self._add(field, condition)
            else:
                self._add(field, {"$eq": condition})

    def _add(self, field: str, condition: Mapping[str, Any]) -> None:
        for operator, wanted in condition.items():
            if operator not in OPERATORS:
                raise InvalidQueryError(f"there is no operator {operator!r}; there are {', '.join(OPERATORS)}")
            wanted = _normalized_dates(wanted) if field in DATES else wanted
            OPERATORS[operator](None, wanted)  # raises InvalidQueryError if `wanted` is of the wrong shape
            self.conditions.append((field, operator, wanted))

    def matches(self, record: Record) -> bool:
        """Return whether a record fulfils all conditions."""
        return all(OPERATORS[operator](value(record, field), wanted) for field, operator, wanted in self.conditions)

    def ids(self) -> Sequence[str] | None:
        """Return the only ids that can match, if the query names them: a shortcut for the commonest query."""
        for field, operator, wanted in self.conditions:
            if field == "msg_id" and operator == "$in" and not isinstance(wanted, str):
                return list(dict.fromkeys(one for one in wanted if isinstance(one, str)))
            if field == "msg_id" and operator == "$eq":
                return [wanted] if isinstance(wanted, str) else []
        return None


def _normalized_dates(wanted: Any) -> Any:
    """Convert dates to the form that records have (`utc`). Values that are not dates are returned unchanged."""
    if isinstance(wanted, (list, tuple)):
        return [_normalized_dates(one) for one in wanted]
    return utc(wanted) or wanted
