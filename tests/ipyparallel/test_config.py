"""The front's settings, its ports, and what a request's metadata may ask for."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trio_sched.core.events import Dependency
from trio_sched.errors import AddressInUseError, ConfigError, WireError
from trio_sched.ipyparallel.config import IppConfig
from trio_sched.ipyparallel.desk import Desk
from trio_sched.ipyparallel.files import path_of, read_former, remove, write
from trio_sched.ipyparallel.roster import Roster
from trio_sched.ipyparallel.tasks import PLAIN, spec_of
from trio_sched.transport.zmq_bound import SocketSet
from trio_sched.wire.jupyter import Codec


@pytest.mark.parametrize(
    "setting",
    [
        {"scheme": "best"}, {"hwm": -1}, {"ping_ms": 0}, {"missed_pings": -1}, {"registration_timeout_s": -1.0},
        {"broadcast_leaves": 0}, {"curve_publickey": "x"}, {"cluster_id": "a/b"}, {"ports": (70_000,)},
        {"max_message_bytes": -1},
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_setting_is_named(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="port" if "ports" in setting else next(iter(setting))):
        IppConfig(profile_dir="/nowhere", **setting)


def test_the_patience_with_registrations_is_ipcontrollers() -> None:
    assert IppConfig(profile_dir="p").patience_s() == 30.0
    assert IppConfig(profile_dir="p", ping_ms=6000).patience_s() == 60.0
    assert IppConfig(profile_dir="p", registration_timeout_s=1.0).patience_s() == 1.0


def wanted(config: IppConfig, *channels: tuple[Any, str], former: Any = None) -> list[int]:
    desk = Desk(config, SimpleNamespace(connections=None), Codec(b""), None, former or {})  # type: ignore[arg-type]
    try:
        return [next(desk._wanted(side, channel)) for side, channel in channels]
    finally:
        desk.sockets.close()


def test_ports_come_from_the_pools_and_then_from_anywhere() -> None:
    config = IppConfig(profile_dir="p", registration_port=1, client_ports=(2,), engine_ports=(3,), ports=(4, 5))
    asked = [("engine", "registration"), *[("client", "task")] * 2, *[("engine", "task")] * 3]
    assert wanted(config, *asked) == [1, 2, 4, 3, 5, 0]


def test_a_former_run_comes_first() -> None:
    former = {"client": {"task": 7}, "engine": {"broadcast": [8, 9]}}
    config = IppConfig(profile_dir="p", ports=(4,))
    asked = [("client", "task"), ("engine", "broadcast"), ("engine", "task")]
    assert wanted(config, *asked, former=former) == [7, 8, 4]


def test_a_port_in_use_is_said() -> None:
    with SocketSet() as first, SocketSet() as second:
        taken = first.bind("router", "tcp://127.0.0.1:0")
        with pytest.raises(AddressInUseError, match="in use"):
            second.bind("router", taken.address)


def test_only_our_own_connection_file_is_removed(tmp_path: Path) -> None:
    config = IppConfig(profile_dir=str(tmp_path), cluster_id="c")
    path = path_of(config, "client")
    assert path == tmp_path / "security" / "ipcontroller-c-client.json"
    write(path, {"key": "ours"})
    write(path, {"key": "a successor's"})
    remove(path, {"key": "ours"})
    assert json.loads(path.read_text()) == {"key": "a successor's"}
    remove(path, {"key": "a successor's"})
    assert not path.exists()


@pytest.mark.parametrize("inside", ["", "[]", "{}", '{"key": "k"}'])
def test_former_files_that_make_no_sense_are_left_alone(tmp_path: Path, inside: str) -> None:
    config = IppConfig(profile_dir=str(tmp_path))
    assert read_former(config) == {}
    for side in ("client", "engine"):
        path = path_of(config, side)  # type: ignore[arg-type]
        path.parent.mkdir(exist_ok=True)
        path.write_text(inside)
    assert read_former(config) == {}


def test_numbers_of_engines_count_up_and_a_free_one_is_granted() -> None:
    roster = Roster()
    first = roster.begin("a", None, 0.0)
    assert [roster.begin(uuid, wanted, 0.0).number for uuid, wanted in (("b", 0), ("c", 7), ("d", None))] == [1, 7, 8]
    roster.remove(first)
    assert roster.begin("e", None, 0.0).number == 9
    assert roster.begin("f", 0, 0.0).number == 0
    assert roster.present() == {}


@pytest.mark.parametrize(
    "metadata",
    [{}, {"after": [], "follow": None, "targets": [], "retries": 0, "timeout": 0}, {"after": {"dependencies": []}},
     {"retries": None, "label": "x", "unknown": [1]}],
)  # fmt: skip
def test_what_asks_for_nothing_is_plain(metadata: dict[str, Any]) -> None:
    assert spec_of(json.dumps(metadata).encode()) is PLAIN


def test_what_a_request_may_ask_for() -> None:
    after = {"dependencies": ["a", "b", "a"], "all": False, "success": True, "failure": True}
    asked = {"after": after, "follow": ["c"], "targets": ["e1", "e2"], "retries": 3, "timeout": 1.5}
    spec = spec_of(json.dumps(asked).encode())
    assert spec.after == Dependency(("a", "b"), all=False, success=True, failure=True)
    assert spec.follow == Dependency(("c",))
    assert spec.targets == {"e1", "e2"}
    assert (spec.retries, spec.timeout_s, spec.kind, spec.crash_limit) == (3, 1.5, "ipyparallel", None)
    assert not spec.same_engine


@pytest.mark.parametrize(
    "metadata",
    [{"after": 3}, {"after": [1]}, {"follow": {"dependencies": {"a": 1}}}, {"retries": -1}, {"retries": "many"},
     {"retries": 10**7}, {"timeout": 10**400}, {"timeout": 1e13},
     {"timeout": -1}, {"timeout": "soon"}, {"targets": [1]}, {"targets": 5}],
    ids=str,
)  # fmt: skip
def test_r25_what_makes_no_sense_is_refused(metadata: dict[str, Any]) -> None:
    with pytest.raises(WireError):
        spec_of(json.dumps(metadata).encode())
