"""`ClientSettings`: the one definition of the parameters of `Client` and `open_client`."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

import pytest

from trio_sched import Client, open_client
from trio_sched.client.settings import ClientSettings


def test_both_clients_have_the_fields_as_their_parameters() -> None:
    expected = inspect.signature(ClientSettings).parameters
    assert list(expected) == [field.name for field in fields(ClientSettings)]
    assert inspect.signature(Client).parameters == expected
    assert inspect.signature(open_client).parameters == expected


def test_only_where_is_positional() -> None:
    kinds = {name: parameter.kind for name, parameter in inspect.signature(Client).parameters.items()}
    assert kinds.pop("where") is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert set(kinds.values()) == {inspect.Parameter.KEYWORD_ONLY}
    positional: Any = Client
    with pytest.raises(TypeError):
        positional("lab", 4)


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"hwm": 3}, TypeError),
        ({"scheme": "lru"}, TypeError),
        ({"where": "lab", "engines": 1}, TypeError),
        ({"engines": 1, "reconnect": "same-name"}, TypeError),
        ({"reconnect": "always"}, ValueError),
        ({"connect_timeout": -1}, ValueError),
        ({"reconnect_s": float("nan")}, ValueError),
    ],
)
def test_invalid_settings_are_refused_before_anything_starts(values: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        ClientSettings(**values)
