"""R33: an exception ends only the event that raised it, is counted and logged, and the server goes on."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from trio_sched.core import invariants, scheduler, settings
from trio_sched.core.completed_tasks import CompletedTasks
from trio_sched.core.records import ClientQueue, Engine, ReadyQueue
from trio_sched.core.request_classes import RequestClasses
from trio_sched.core.scheduler import Scheduler
from trio_sched.server.actor import Actor
from trio_sched.server.outbox import Outbox
from trio_sched.server.queries import QueryHandler
from trio_sched.testing import Simulator, open_harness, run_virtual
from trio_sched.wire import native


class Fault(RuntimeError):
    """An injected exception."""


def raising(method: Callable[..., Any], is_due: Callable[..., bool]) -> Callable[..., Any]:
    """Return the method, wrapped so that it raises when `is_due` says so."""

    def wrapper(*arguments: Any, **keywords: Any) -> Any:
        if is_due(*arguments):
            raise Fault(method.__qualname__)
        return method(*arguments, **keywords)

    return wrapper


PLACES = [
    *(
        (Scheduler, name)
        for name in (
            "_register_dependencies",
            "_enqueue",
            "_enqueue_runnable",
            "_make_ready",
            "_make_waiting",
            "_remove_from_queue",
            "_requeue",
        )
    ),
    *(
        (Scheduler, name)
        for name in (
            "_dispatch",
            "_make_assignment",
            "_cascade",
            "_end_task",
            "_retry_task",
            "_requeue_or_end",
            "_cancel_task",
        )
    ),
    *((Scheduler, name) for name in ("_release_answered", "_unregister", "_requeue_unsatisfiable", "_answer_repeated")),
    *(
        (RequestClasses, name)
        for name in (
            "find",
            "discard_if_empty",
            "add_engine",
            "remove_engine",
            "update_engine",
            "push",
            "remove",
            "discard_queue_if_empty",
            "pop_next",
        )
    ),
    *((CompletedTasks, name) for name in ("add", "retain", "release", "mark_received")),
    *((Engine, name) for name in ("assign", "release", "presumed_running")),
    (scheduler, "find_refusal"),
    *((ReadyQueue, name) for name in ("push", "pop", "remove")),
    *((ClientQueue, name) for name in ("push", "head", "drop", "count_removed")),
]


@pytest.fixture
def _quiet() -> Iterator[None]:
    """Silence the log events of the injected faults."""
    logging.getLogger("trio_sched").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("trio_sched").setLevel(logging.NOTSET)


@pytest.mark.usefixtures("_quiet")
@pytest.mark.parametrize("seed", range(8))
def test_r33_nothing_is_lost_when_methods_of_the_core_raise(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random faults of peers, and random exceptions in methods of the core. The simulator checks the invariants after
    each step, and in the end that each accepted submission has one end."""
    rng = random.Random(seed)
    faults = faults_left = 0

    def is_due(*_arguments: Any) -> bool:
        nonlocal faults, faults_left
        due = faults_left > 0 and rng.random() < 0.002
        faults += due
        faults_left -= due
        return due

    def step(actor: Actor, now: float) -> None:
        nonlocal faults_left
        faults_left = 3  # in a turn and its recovery
        actor_step(actor, now)
        faults_left = 0

    actor_step = Actor.step
    monkeypatch.setattr(Actor, "step", step)

    for kind, name in PLACES:
        monkeypatch.setattr(kind, name, raising(getattr(kind, name), is_due))
    server = Simulator(seed, steps=500).run()
    assert faults > 5
    assert server.ingress.counters["internal_error"] >= 1
    assert server.scheduler.outcome_counts["ok"] > 20


def test_r33_a_task_whose_answer_raises_fails_with_the_error_and_the_next_one_does_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client, engine = await harness.client(), await harness.engine(eager=True)
            assert engine.number
            bad = await client.submit("bad", retries=3)
            monkeypatch.setattr(
                Scheduler,
                "_release_answered",
                raising(Scheduler._release_answered, lambda _self, _engine, task, *_: task & 0xFFFFFFFF == 1),
            )
            end = await client.result_of(bad)
            assert (end.outcome, end.error and end.error.name) == ("error", "SchedulerError")
            good = await client.submit("good")
            assert (await client.result_of(good)).outcome == "ok"
            assert harness.running.status()["counters"]["internal_error"] == 1
            invariants.check(harness.server.scheduler)

    run_virtual(main)
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], Fault)
    assert "TaskFinished" in record.getMessage()


def test_r33_a_submission_that_raises_is_refused_and_the_batch_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client, engine = await harness.client(), await harness.engine(eager=True)
            assert engine.number
            monkeypatch.setattr(
                Scheduler,
                "_make_ready",
                raising(Scheduler._make_ready, lambda _self, task, *_: task.id & 0xFFFFFFFF == 2),
            )
            monkeypatch.setattr(
                scheduler, "find_refusal", raising(settings.find_refusal, lambda spec, _settings: spec.label == "bad")
            )
            first = client.submit_nowait("1", "2", "3")
            refused = await client.submit("4", label="bad")
            assert (await client.expect(native.Refused)).id == refused
            ends = [await client.result_of(number) for number in range(first - 2, first + 1)]
            assert [end.outcome for end in ends] == ["ok", "error", "ok"]
            assert client.accepted == 4

    run_virtual(main)


def test_r33_a_task_whose_dispatch_raises_is_ended_and_later_tasks_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dispatch of the task raises each time, so the task that the traceback names is ended."""

    async def main() -> None:
        async with open_harness() as harness:
            client = await harness.client()
            monkeypatch.setattr(
                Scheduler,
                "_make_assignment",
                raising(Scheduler._make_assignment, lambda _self, task, *_: task.spec.label == "bad"),
            )
            bad = await client.submit("bad", label="bad")
            good = await client.submit("good")
            await harness.engine(eager=True)
            assert (await client.result_of(bad)).outcome == "error"
            assert (await client.result_of(good)).outcome == "ok"

    run_virtual(main)


def test_r33_when_recovery_fails_all_tasks_end_and_the_server_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client, engine = await harness.client(), await harness.engine(eager=True)
            with monkeypatch.context() as patched:
                patched.setattr(RequestClasses, "pop_next", raising(RequestClasses.pop_next, lambda *_: True))
                assert (await client.result_of(await client.submit("bad"))).outcome == "error"
            assert (await client.result_of(await client.submit("good"))).outcome == "ok"
            assert engine.number in harness.server.scheduler.engines

    run_virtual(main)


def test_r33_an_exception_while_sending_ends_only_the_connection_of_that_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with open_harness() as harness:
            one, other = await harness.client(), await harness.client()
            await harness.engine(eager=True)
            number = one.number
            send = Outbox._send_results
            failing = [True]
            monkeypatch.setattr(
                Outbox,
                "_send_results",
                raising(send, lambda _self, client, _now: client.number == number and failing[0]),
            )
            task = await one.submit("x")
            assert (await other.result_of(await other.submit("y"))).outcome == "ok"
            failing.clear()
            failing.append(False)
            assert (await one.result_of(task)).outcome == "ok"  # after it came back

    run_virtual(main)


def test_r33_a_query_whose_handler_raises_is_answered_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client = await harness.client()
            with monkeypatch.context() as patched:
                patched.setattr(QueryHandler, "answer", raising(QueryHandler.answer, lambda *_: True))
                client.send(native.Query(7, "status"))
                reply = await client.expect(native.Reply)
            assert (reply.request, "its log has the traceback" in reply.error) == (7, True)

    run_virtual(main)
