"""Settings, ports, connection files, and the metadata of requests."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from trio_sched.core.effects import Refuse
from trio_sched.core.events import Dependency
from trio_sched.errors import AddressInUseError, ConfigError, WireError
from trio_sched.ipyparallel.config import SIDES, IppConfig
from trio_sched.ipyparallel.connection_files import path_of, read_former, remove, write
from trio_sched.ipyparallel.controller_context import ControllerContext
from trio_sched.ipyparallel.front import IpyparallelFront
from trio_sched.ipyparallel.records.recorder import NullRecorder
from trio_sched.ipyparallel.tasks import PLAIN, spec_of
from trio_sched.server.serve import serve
from trio_sched.transport.private_files import MAX_FILE_BYTES
from trio_sched.transport.zmq_socket_set import SocketSet
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
def test_invalid_setting_is_named_in_the_error(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="port" if "ports" in setting else next(iter(setting))):
        IppConfig(profile_dir="/nowhere", **setting)


def test_registration_timeout_is_ipcontrollers() -> None:
    assert IppConfig(profile_dir="p").effective_registration_timeout_s() == 30.0
    assert IppConfig(profile_dir="p", ping_ms=6000).effective_registration_timeout_s() == 60.0
    assert IppConfig(profile_dir="p", registration_timeout_s=1.0).effective_registration_timeout_s() == 1.0


def candidate_ports(config: IppConfig, *channels: tuple[Any, str], former: Any = None) -> list[int]:
    ingress: Any = SimpleNamespace(connections=None)
    context = ControllerContext(config, ingress, Codec(b""), NullRecorder(), former or {})
    try:
        return [next(context._candidate_ports(side, channel)) for side, channel in channels]
    finally:
        context.sockets.close()


def test_ports_come_from_the_pools_and_then_are_any() -> None:
    config = IppConfig(profile_dir="p", registration_port=1, client_ports=(2,), engine_ports=(3,), ports=(4, 5))
    asked = [("engine", "registration"), *[("client", "task")] * 2, *[("engine", "task")] * 3]
    assert candidate_ports(config, *asked) == [1, 2, 4, 3, 5, 0]


def test_ports_of_a_former_run_come_first() -> None:
    former = {"client": {"task": 7}, "engine": {"broadcast": [8, 9]}}
    config = IppConfig(profile_dir="p", ports=(4,))
    asked = [("client", "task"), ("engine", "broadcast"), ("engine", "task")]
    assert candidate_ports(config, *asked, former=former) == [7, 8, 4]


def test_port_in_use_is_an_error() -> None:
    with SocketSet() as first, SocketSet() as second:
        taken = first.bind("router", "tcp://127.0.0.1:0")
        with pytest.raises(AddressInUseError, match="in use"):
            second.bind("router", taken.address)


def test_two_fronts_for_ipyparallel_are_an_error(tmp_path: Path) -> None:
    config = IppConfig(profile_dir=str(tmp_path))
    fronts = [IpyparallelFront(config), IpyparallelFront(config)]
    with pytest.raises(ValueError, match="only one of the fronts"):
        trio.run(serve, config.for_server(runtime_dir=str(tmp_path / "run")), fronts)
    assert not path_of(config, "client").exists()


def test_front_that_does_not_run_has_nothing_to_flush_and_ignores_effects(tmp_path: Path) -> None:
    front = IpyparallelFront(IppConfig(profile_dir=str(tmp_path)))
    front.flush()
    front.effect_handler.take(Refuse("client", "task", "too many tasks"))


def test_connection_file_of_another_controller_is_not_removed(tmp_path: Path) -> None:
    config = IppConfig(profile_dir=str(tmp_path), cluster_id="c")
    path = path_of(config, "client")
    assert path == tmp_path / "security" / "ipcontroller-c-client.json"
    write(path, {"key": "first"})
    write(path, {"key": "a successor's"})
    remove(path, {"key": "first"})
    assert json.loads(path.read_text()) == {"key": "a successor's"}
    remove(path, {"key": "a successor's"})
    assert not path.exists()


@pytest.mark.parametrize("inside", ["", "[]", "{}", '{"key": "k"}'])
def test_malformed_former_files_are_not_used(tmp_path: Path, inside: str) -> None:
    config = IppConfig(profile_dir=str(tmp_path))
    assert read_former(config) == {}
    for side in ("client", "engine"):
        path = path_of(config, side)
        path.parent.mkdir(exist_ok=True)
        path.write_text(inside)
        path.chmod(0o600)
    assert read_former(config) == {}


def former_files(config: IppConfig) -> list[Path]:
    """Write the connection files of a former run."""
    inside = {"key": "k", "registration": 1, "pack": "json", "unpack": "json", "signature_scheme": "hmac-sha256"}
    paths = [path_of(config, side) for side in SIDES]
    for path in paths:
        write(path, inside)
    assert read_former(config) == {"client": inside, "engine": inside}
    return paths


def other_users(path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can give a file away")
    os.chown(path, 1_000_003, 1_000_003)


def within_limit(future: Future[Any], unblock: Callable[[], None] | None) -> Any:
    """Return the result of a future. After 10 s its thread is released, so that the test fails and does not hang."""
    try:
        return future.result(10)
    except TimeoutError:
        if unblock is not None:
            unblock()
        raise


def unblock(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY))


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda path: path.chmod(0o666), "is open to other users"),
        (other_users, "belongs to user 1000003"),
        (fifo, "it is a FIFO, not a regular file"),
        (lambda path: path.write_bytes(path.read_bytes().ljust(MAX_FILE_BYTES + 1)), "is larger than"),
    ],
    ids=["readable by others", "of another user", "FIFO", "large"],
)
@pytest.mark.parametrize("side", [0, 1])
def test_former_files_accessible_to_others_are_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: Callable[[Path], Any], reason: str, side: int
) -> None:
    config = IppConfig(profile_dir=str(tmp_path))
    paths = former_files(config)
    change(paths[side])
    with ThreadPoolExecutor(1) as pool:
        unblocked = partial(unblock, paths[side]) if paths[side].is_fifo() else None
        assert within_limit(pool.submit(read_former, config), unblocked) == {}
        within_limit(pool.submit(remove, paths[side], {"key": "k"}), unblocked)
    assert "key and ports are new" in caplog.text
    assert reason in caplog.text
    write(paths[side], {"key": "new"})
    assert json.loads(paths[side].read_text()) == {"key": "new"}
    assert paths[side].stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "metadata",
    [{}, {"after": [], "follow": None, "targets": [], "retries": 0, "timeout": 0}, {"after": {"dependencies": []}},
     {"retries": None, "label": "x", "unknown": [1]}],
)  # fmt: skip
def test_metadata_that_ask_for_nothing_give_the_plain_spec(metadata: dict[str, Any]) -> None:
    assert spec_of(json.dumps(metadata).encode()) is PLAIN


def test_metadata_are_decoded_to_a_spec() -> None:
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
def test_r25_invalid_metadata_are_refused(metadata: dict[str, Any]) -> None:
    with pytest.raises(WireError):
        spec_of(json.dumps(metadata).encode())
