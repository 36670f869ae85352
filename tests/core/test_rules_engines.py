"""R10-R16: which engine, which task first, as scenarios; and how the schemes that draw at random spread tasks."""

from __future__ import annotations

import pytest

from trio_sched.core import snapshot
from trio_sched.core.effects import AssignTask
from trio_sched.core.events import Dependency

from .scenario import Scenario, accepted, delivered, engine_forgotten, failed, refused, sent


def assignments(effects: list[object]) -> list[tuple[object, object]]:
    return [(effect.task, effect.engine) for effect in effects if isinstance(effect, AssignTask)]


# ---- R10: high-water mark -------------------------------------------------------------------------------------------


def test_r10_at_most_hwm_times_slots_are_outstanding() -> None:
    scenario = Scenario(hwm=2)
    for n in range(6):
        scenario.submit(n)
    assert scenario.engine("E", slots=2) == [sent(n, "E") for n in range(4)]
    assert scenario.ok(1) == [delivered(1, "ok", "E"), sent(4, "E")]


def test_r10_an_hwm_of_zero_means_no_limit() -> None:
    scenario = Scenario(hwm=0)
    for n in range(50):
        scenario.submit(n)
    assert scenario.engine("E") == [sent(n, "E") for n in range(50)]


def test_r10_an_engine_may_declare_an_hwm() -> None:
    scenario = Scenario(hwm=1)
    for n in range(9):
        scenario.submit(n)
    assert scenario.engine("E", hwm=2) == [sent(0, "E"), sent(1, "E")]
    assert scenario.engine("F", hwm=1, slots=2) == [sent(2, "F"), sent(3, "F")]
    assert scenario.engine("G", hwm=0) == [sent(n, "G") for n in range(4, 9)]


# ---- R11: schemes ---------------------------------------------------------------------------------------------------


def test_r11_leastload_takes_the_least_loaded_then_the_least_recently_used() -> None:
    scenario = Scenario(hwm=10)
    for engine in ("G", "F", "E"):  # the newest is the least recently used
        scenario.engine(engine)
    first = [assignments(scenario.submit(n))[0][1] for n in range(6)]
    assert first == ["E", "F", "G", "E", "F", "G"]
    scenario.ok(1)  # F: 1, the others 2
    assert scenario.submit("a") == [accepted("a"), sent("a", "F")]
    assert scenario.submit("b") == [accepted("b"), sent("b", "E")]


def test_r11_lru_ignores_the_load() -> None:
    scenario = Scenario(scheme="lru", hwm=10)
    for engine in ("F", "E"):
        scenario.engine(engine)
    assert scenario.submit(0) == [accepted(0), sent(0, "E")]
    assert scenario.submit(1) == [accepted(1), sent(1, "F")]
    scenario.ok(1)
    assert scenario.submit(2) == [accepted(2), sent(2, "E")]
    scenario.engine("G")
    assert scenario.submit(3) == [accepted(3), sent(3, "G")]
    assert scenario.submit(4) == [accepted(4), sent(4, "F")]


def test_r11_lru_skips_full_engines() -> None:
    scenario = Scenario(scheme="lru", hwm=1)
    for engine in ("F", "E"):
        scenario.engine(engine)
    scenario.submit(0)
    scenario.submit(1)
    assert scenario.submit(2) == [accepted(2)]
    assert scenario.ok(1) == [delivered(1, "ok", "F"), sent(2, "F")]


def test_r11_pure_assigns_in_turn_in_the_order_of_joining_without_a_limit() -> None:
    scenario = Scenario(scheme="pure", hwm=1)
    for engine in ("E", "F"):
        scenario.engine(engine)
    assigned = [assignments(scenario.submit(n))[0][1] for n in range(5)]
    assert assigned == ["E", "F", "E", "F", "E"]
    scenario.engine("G")
    assert [assignments(scenario.submit(n))[0][1] for n in range(5, 9)] == ["F", "G", "E", "F"]


def test_r11_pure_skips_lost_and_draining_engines() -> None:
    scenario = Scenario(scheme="pure")
    for engine in ("E", "F", "G"):
        scenario.engine(engine)
    scenario.lost("E")
    scenario.drain("F")
    assert [assignments(scenario.submit(n))[0][1] for n in range(3)] == ["G", "G", "G"]
    scenario.returned("E")
    assert scenario.submit("a") == [accepted("a"), sent("a", "E")]


@pytest.mark.parametrize(
    "asks",
    [
        {"after": ["x"]},
        {"follow": ["x"]},
        {"inputs": ("x",)},
        {"targets": ["E"]},
        {"resources": (("gpu", 1.0),)},
        {"retries": 1},
        {"timeout_s": 1.0},
    ],
    ids=lambda asks: next(iter(asks)),
)
def test_r11_pure_refuses_options_that_it_does_not_support(asks: dict[str, object]) -> None:
    scenario = Scenario(scheme="pure")
    scenario.engine("E")
    scenario.submit("x")
    assert scenario.submit("a", **asks) == [refused("a")]
    assert "pure" in scenario.reasons[0]


def test_r11_pure_accepts_empty_options() -> None:
    scenario = Scenario(scheme="pure")
    scenario.engine("E")
    effects = scenario.submit("a", after=[], follow=[], inputs=(), retries=0, timeout_s=0.0)
    assert effects == [accepted("a"), sent("a", "E")]


def test_r11_pure_assigns_the_tasks_of_a_dead_engine_again() -> None:
    scenario = Scenario(scheme="pure")
    scenario.engine("E")
    scenario.engine("F")
    scenario.submit("a")
    assert scenario.died("E", "a") == [engine_forgotten("E"), sent("a", "F", attempt=2)]


def shares(scheme: str, loads: list[int], tasks: int = 3000) -> list[float]:
    """The shares of three engines in `tasks` choices, with these loads at each choice."""
    scenario = Scenario(scheme=scheme, hwm=0, check=False)
    names = ["E", "F", "G"]
    for engine in reversed(names):
        scenario.engine(engine)
    for engine, load in zip(names, loads, strict=True):
        for n in range(load):
            scenario.submit(f"{engine} {n}", targets=[engine])
    counts = dict.fromkeys(names, 0)
    for n in range(tasks):
        [(_, engine)] = assignments(scenario.submit(n))
        counts[engine] += 1
        scenario.ok(n)
    return [counts[engine] / tasks for engine in names]


def close(found: list[float], expected: list[float], tasks: int = 3000) -> bool:
    """A chi-square of two degrees of freedom below 18.4: one seed in 10,000 is worse."""
    return sum(tasks * (f - e) ** 2 / e for f, e in zip(found, expected, strict=True)) < 18.4


def test_r11_plainrandom_is_uniform() -> None:
    assert close(shares("plainrandom", [0, 5, 1]), [1 / 3, 1 / 3, 1 / 3])


def test_r11_weighted_prefers_the_less_loaded() -> None:
    """Loads 1, 2, 4: weights 4, 2, 1 of 7; two drawn with replacement, the less loaded goes."""
    p, q, r = 4 / 7, 2 / 7, 1 / 7
    expected = [p * p + 2 * p * (q + r), q * q + 2 * q * r, r * r]
    assert close(shares("weighted", [1, 2, 4]), expected)


def test_r11_weighted_ties_go_to_the_first_drawn() -> None:
    assert close(shares("weighted", [3, 3, 3]), [1 / 3, 1 / 3, 1 / 3])


def test_r11_weighted_rarely_chooses_a_loaded_engine_while_another_is_idle() -> None:
    assert shares("weighted", [0, 2, 2], tasks=500) == [1.0, 0.0, 0.0]


def test_r11_twobin_takes_the_less_recently_used_of_two() -> None:
    """By rank in the order of use: both draws must be at or behind the k-th."""
    scenario = Scenario(scheme="twobin", hwm=0, check=False)
    line = ["E", "F", "G"]
    for engine in reversed(line):
        scenario.engine(engine)
    tasks, ranks = 3000, [0, 0, 0]
    for n in range(tasks):
        [(_, engine)] = assignments(scenario.submit(n))
        ranks[line.index(engine)] += 1
        line.remove(engine)
        line.append(engine)
        scenario.ok(n)
    assert close([rank / tasks for rank in ranks], [5 / 9, 3 / 9, 1 / 9])


@pytest.mark.parametrize("scheme", ["plainrandom", "twobin", "weighted"])
def test_r11_random_schemes_skip_excluded_engines_and_treat_the_others_alike(scheme: str) -> None:
    scenario = Scenario(scheme=scheme, hwm=0, check=False)
    for engine in ("E", "F", "G"):
        scenario.engine(engine)
    counts, tasks = {"F": 0, "G": 0}, 0
    for n in range(1200):
        scenario.submit(n, retries=1, targets=["E", "F", "G"])
        if scenario.where[n].engine == "E":
            [(_, engine)] = assignments(scenario.error(n))
            counts[str(engine)] += 1
            tasks += 1
        scenario.ok(n)
    assert tasks > 100
    if scheme != "twobin":  # which depends on the time of use
        assert abs(counts["F"] - counts["G"]) < 4 * tasks**0.5


@pytest.mark.parametrize("scheme", ["leastload", "lru", "plainrandom", "twobin", "weighted"])
def test_r11_every_scheme_fills_all_engines_up_to_the_hwm(scheme: str) -> None:
    scenario = Scenario(scheme=scheme, hwm=2)
    for engine in ("E", "F", "G"):
        scenario.engine(engine)
    where = [engine for n in range(9) for _, engine in assignments(scenario.submit(n))]
    assert sorted(where) == ["E", "E", "F", "F", "G", "G"]


@pytest.mark.parametrize("scheme", ["plainrandom", "twobin", "weighted"])
def test_r11_the_same_seed_draws_the_same_engines(scheme: str) -> None:
    def drawn() -> list[object]:
        scenario = Scenario(scheme=scheme, hwm=0, seed=7)
        for engine in range(5):
            scenario.engine(engine)
        return [engine for n in range(50) for _, engine in assignments(scenario.submit(n))]

    assert drawn() == drawn()


# ---- R12-R14: order -------------------------------------------------------------------------------------------------


def test_r12_by_priority_then_in_submission_order() -> None:
    scenario = Scenario(hwm=0)
    for task, priority in [("a", 0), ("b", 1), ("c", -1), ("d", 1), ("e", 0)]:
        scenario.submit(task, priority=priority)
    assert scenario.engine("E") == [sent(task, "E") for task in "bdaec"]


def test_r12_a_task_that_comes_back_has_its_old_place() -> None:
    scenario = Scenario()
    scenario.engine("E")
    scenario.submit("a", retries=1)
    scenario.submit("b")
    scenario.submit("c")
    assert scenario.error("a") == [sent("a", "E", attempt=2)]
    assert scenario.ok("a") == [delivered("a", "ok", "E"), sent("b", "E")]


def test_r12_a_task_whose_dependencies_are_met_late_has_its_old_place() -> None:
    scenario = Scenario()
    scenario.engine("E")
    scenario.submit("a")
    scenario.submit("b", after=["a"])
    scenario.submit("c")
    assert scenario.ok("a") == [delivered("a", "ok", "E"), sent("b", "E")]


def test_r13_a_task_that_cannot_go_does_not_delay_later_ones() -> None:
    scenario = Scenario()
    scenario.engine("F")
    scenario.engine("E")
    scenario.submit("long", targets=["F"])
    assert scenario.submit("waits", targets=["F"], priority=5) == [accepted("waits")]
    assert scenario.submit("goes") == [accepted("goes"), sent("goes", "E")]
    assert scenario.ok("long") == [delivered("long", "ok", "F"), sent("waits", "F")]


def test_r14_without_engines_tasks_wait_and_a_new_engine_is_filled_at_once() -> None:
    scenario = Scenario(hwm=2)
    assert [scenario.submit(n) for n in range(3)] == [[accepted(n)] for n in range(3)]
    assert scenario.engine("E") == [sent(0, "E"), sent(1, "E")]


# ---- R15: fair share ------------------------------------------------------------------------------------------------


def assignment_order(scenario: Scenario, engine: str, tasks: int) -> str:
    """End the last task `tasks` times; return the first letters of the names of the tasks that go next."""
    order = ""
    running = list(scenario.where.values())[-1].task
    for _ in range(tasks):
        [(running, _)] = assignments(scenario.finished(running, "ok", engine))
        order += str(running)[0]
    return order


def queue(scenario: Scenario, client: str, tasks: int) -> None:
    for n in range(tasks):
        scenario.submit(f"{client} {n}", client=client)


def test_r15_clients_take_turns() -> None:
    scenario = Scenario()
    for client in "xy":
        scenario.client(client)
    queue(scenario, "x", 20)
    queue(scenario, "y", 20)
    scenario.engine("E")
    assert assignment_order(scenario, "E", 9) == "yxyxyxyxy"


def test_r15_shares_by_weight() -> None:
    scenario = Scenario()
    scenario.client("x", weight=1.0)
    scenario.client("y", weight=4.0)
    queue(scenario, "x", 20)
    queue(scenario, "y", 20)
    scenario.engine("E")
    order = assignment_order(scenario, "E", 20)
    assert order == "yyyyx" * 4


def test_r15_an_idle_client_gains_no_credit() -> None:
    scenario = Scenario()
    for client in "xy":
        scenario.client(client)
    queue(scenario, "x", 40)
    scenario.engine("E")
    assert assignment_order(scenario, "E", 20) == "x" * 20
    queue(scenario, "y", 10)
    assert assignment_order(scenario, "E", 8) == "xyxyxyxy"


def test_r15_a_client_that_becomes_active_alone_starts_at_the_last_virtual_time_sent() -> None:
    scenario = Scenario(hwm=0)
    for client in "xy":
        scenario.client(client)
    scenario.engine("E", hwm=1)
    queue(scenario, "x", 10)
    assert assignment_order(scenario, "E", 9) == "x" * 9  # x's virtual time is 10 now, its last task was sent at 9
    queue(scenario, "y", 2)
    scenario.submit("x more", client="x")
    assert assignment_order(scenario, "E", 3) == "yxy"


def test_r15_priority_comes_first() -> None:
    scenario = Scenario(hwm=0)
    for client in "xy":
        scenario.client(client)
    scenario.submit("x 1", client="x")
    scenario.submit("y 1", client="y", priority=1)
    scenario.submit("y 2", client="y", priority=1)
    assert scenario.engine("E") == [sent("y 1", "E"), sent("y 2", "E"), sent("x 1", "E")]


def test_r15_a_ready_task_that_gains_an_engine_keeps_the_turn_of_its_client() -> None:
    scenario = Scenario()
    scenario.client("you")
    scenario.engine("E")
    scenario.engine("F")
    scenario.submit("e", client="you", targets=["E"])
    scenario.ok("e")
    scenario.submit("on E", targets=["E"])
    scenario.submit("f", targets=["F"])
    scenario.submit("either", client="you", follow=Dependency(("e", "f"), all=False))  # ready, but E is busy
    scenario.submit("mine", targets=["F"])
    assert scenario.ok("f") == [delivered("f", "ok", "F"), sent("either", "F")]


# ---- R16: resources -------------------------------------------------------------------------------------------------

GPU, TWO_GPUS = (("gpu", 1.0),), (("gpu", 2.0),)


def test_r16_a_task_goes_only_to_engines_with_enough_free_resources() -> None:
    scenario = Scenario(hwm=0)
    scenario.engine("F", slots=4, gpu=2.0)
    scenario.engine("E", slots=4)
    assert scenario.submit("a", resources=GPU) == [accepted("a"), sent("a", "F")]
    assert scenario.submit("b", resources=TWO_GPUS) == [accepted("b")]
    assert scenario.submit("c", resources=GPU) == [accepted("c"), sent("c", "F")]
    assert scenario.submit("d", resources=GPU) == [accepted("d")]
    assert scenario.ok("a") == [delivered("a", "ok", "F"), sent("d", "F")]
    assert scenario.ok("c") == [delivered("c", "ok", "F")]
    assert scenario.ok("d") == [delivered("d", "ok", "F"), sent("b", "F")]


def test_r16_a_task_that_fits_no_engine_waits() -> None:
    scenario = Scenario()
    scenario.engine("E", gpu=1.0)
    assert scenario.submit("a", resources=TWO_GPUS) == [accepted("a")]
    assert scenario.submit("b") == [accepted("b"), sent("b", "E")]
    assert scenario.engine("F", gpu=2.0) == [sent("a", "F")]


def test_r16_tasks_sent_ahead_hold_no_resources_until_they_run() -> None:
    scenario = Scenario(hwm=3)
    scenario.engine("E", slots=1, gpu=1.0)
    assert scenario.submit("plain") == [accepted("plain"), sent("plain", "E")]
    assert scenario.submit("a", resources=GPU) == [accepted("a"), sent("a", "E")]
    assert scenario.submit("b", resources=GPU) == [accepted("b"), sent("b", "E")]
    assert scenario.ok("plain") == [delivered("plain", "ok", "E")]  # now "a" runs and holds the gpu
    assert scenario.submit("c", resources=GPU) == [accepted("c")]
    assert scenario.ok("a") == [delivered("a", "ok", "E")]  # now "b" does
    assert scenario.ok("b") == [delivered("b", "ok", "E"), sent("c", "E")]


def test_r16_the_longest_waiting_task_that_fits_takes_the_slot() -> None:
    scenario = Scenario(hwm=2)
    scenario.engine("E", slots=2, gpu=2.0)
    scenario.submit("one", resources=GPU)
    scenario.submit("two")
    scenario.submit("both", resources=GPU)
    scenario.submit("plain")
    assert scenario.ok("two") == [delivered("two", "ok", "E")]  # "both" runs: no gpu is free
    assert scenario.submit("x", resources=GPU) == [accepted("x")]
    assert scenario.submit("y") == [accepted("y"), sent("y", "E")]


def test_r16_fractions_add_up() -> None:
    scenario = Scenario(hwm=0)
    scenario.engine("E", slots=3, gpu=0.3)
    assert scenario.submit("a", resources=(("gpu", 0.1),)) == [accepted("a"), sent("a", "E")]
    assert scenario.submit("b", resources=(("gpu", 0.2),)) == [accepted("b"), sent("b", "E")]
    assert scenario.submit("c", resources=(("gpu", 0.1),)) == [accepted("c")]


def test_r16_a_resource_that_is_not_offered_has_amount_zero() -> None:
    scenario = Scenario()
    scenario.engine("E", gpu=1.0)
    assert scenario.submit("a", resources=(("gpu", 1.0), ("license", 1.0))) == [accepted("a")]
    assert scenario.cancel("a") == [failed("a", "TaskCancelled")]


def test_r16_a_task_goes_only_to_engines_of_its_kind() -> None:
    scenario = Scenario()
    scenario.engine("native")
    assert scenario.submit("a", kind="other") == [accepted("a")]
    assert "no engine has a kind of 'other'" in snapshot.explain(scenario.scheduler, "a", 0.0)
    assert scenario.submit("b") == [accepted("b"), sent("b", "native")]
    assert scenario.engine("foreign", kind="other") == [sent("a", "foreign")]
    assert scenario.submit("c", targets=["native"], kind="other") == [accepted("c")]
    assert scenario.died("native", "b") == [engine_forgotten("native"), failed("c", "ImpossibleDependency", None)]


def test_r29_status_shows_engines_that_drain_and_are_drained() -> None:
    scenario = Scenario()
    scenario.engine("E", hwm=2)
    scenario.submit("a")
    states = []
    for step in (lambda: None, lambda: scenario.drain("E"), lambda: scenario.ok("a")):
        step()
        [row] = snapshot.engines(scenario.scheduler, 0.0)
        states.append(row["state"])
    assert states == ["open", "draining", "drained"]
