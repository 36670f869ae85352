"""The registry of engines: numbers, joining, missed heartbeats, and registrations that stall."""

from __future__ import annotations

from trio_sched.ipyparallel.engine_registry import EngineRegistry

MISSED_LIMIT = 2


def joined(registry: EngineRegistry, uuid: str) -> None:
    """Register an engine, and complete its registration."""
    registry.complete(registry.begin(uuid, None, 0.0))


def test_engine_numbers_count_up_and_a_free_one_is_granted() -> None:
    registry = EngineRegistry()
    first = registry.begin("a", None, 0.0)
    assert [registry.begin(uuid, wanted, 0.0).number for uuid, wanted in (("b", 0), ("c", 7), ("d", None))] == [1, 7, 8]
    registry.remove(first)
    assert registry.begin("e", None, 0.0).number == 9
    assert registry.begin("f", 0, 0.0).number == 0
    assert registry.joined() == {}


def test_engine_times_out_after_more_than_the_limit_of_missed_periods_in_a_row() -> None:
    registry = EngineRegistry()
    for uuid in ("answers", "is silent", "answers late"):
        joined(registry, uuid)
    timed_out = []
    for period in range(2 * MISSED_LIMIT + 1):
        registry.record_pong("answers")
        if period == MISSED_LIMIT:
            registry.record_pong("answers late")
        timed_out.append([engine.uuid for engine in registry.end_period(MISSED_LIMIT)])
        for uuid in timed_out[-1]:
            registry.remove(registry.engines[uuid])
    assert timed_out == [[], [], [], ["is silent"], []]
    assert list(registry.engines) == ["answers", "answers late"]


def test_engine_that_has_not_joined_stalls_and_does_not_time_out() -> None:
    registry = EngineRegistry()
    joined(registry, "a")
    registry.begin("b", None, 10.0)
    for _ in range(MISSED_LIMIT + 1):
        registry.record_pong("a")
        assert registry.end_period(MISSED_LIMIT) == []
    assert registry.stalled(15.0, timeout_s=5.0) == []
    assert [engine.uuid for engine in registry.stalled(15.1, timeout_s=5.0)] == ["b"]


def test_engine_that_registers_again_is_recognized() -> None:
    registry = EngineRegistry()
    for had_left in (False, True):
        engine = registry.begin("a", None, 0.0)
        assert registry.complete(engine) is had_left
        registry.remove(engine)
    assert registry.record_pong("a") is None
