"""`build_hello`: the first message of a connection, as every peer of the package sends it."""

from __future__ import annotations

import os
import platform

import msgspec

from trio_sched.wire.hello import SessionKey, build_hello
from trio_sched.wire.native import Hello, decode_from_peer, encode
from trio_sched.wire.ranges import LENGTHS


def test_a_hello_names_the_process() -> None:
    hello = build_hello("client", "the token", host="here", name="notebook")
    assert (hello.role, hello.token, hello.host, hello.name) == ("client", "the token", "here", "notebook")
    assert hello.pid == os.getpid()
    assert hello.python == platform.python_version()


def test_a_first_hello_resumes_nothing() -> None:
    hello = build_hello("nanny", "t", host="h")
    assert (hello.session, hello.secret, hello.scheduler) == (0, "", "")


def test_a_hello_with_a_session_key_resumes_that_session() -> None:
    hello = build_hello("nanny", "t", host="h", session=SessionKey(3, "f00d", "an instance"))
    assert (hello.session, hello.secret, hello.scheduler) == (3, "f00d", "an instance")


def test_fields_of_a_role_are_passed_on_and_absent_ones_keep_their_defaults() -> None:
    hello = build_hello("engine", "t", host="h", slots=4, hwm=None, holding=[7], resources={"gpu": 1.0})
    expected = Hello("engine", token="t", slots=4, holding=[7], resources={"gpu": 1.0})
    for name in ("pid", "python", "host"):
        setattr(expected, name, getattr(hello, name))
    assert hello == expected


def test_a_name_or_host_that_utf8_cannot_hold_is_escaped_so_that_the_hello_can_be_sent() -> None:
    hello = build_hello("client", "t", host="caf\udce9", name="caf\udce9")
    assert decode_from_peer(encode(hello)) == hello
    assert (hello.host, hello.name) == ("caf\\udce9", "caf\\udce9")


def test_a_long_host_name_is_cut_to_what_the_scheduler_accepts() -> None:
    assert len(build_hello("client", "t", host="h" * 5000).host) == LENGTHS["host"]


def test_every_field_of_hello_comes_from_the_builder_or_its_keywords() -> None:
    """A new field of `Hello` must be added to `RoleFields`, or filled by the builder."""
    from trio_sched.wire.hello import RoleFields

    filled = {"role", "version", "token", "session", "secret", "scheduler", "name", "host", "pid", "python"}
    assert {field.name for field in msgspec.structs.fields(Hello)} == filled | RoleFields.__optional_keys__
