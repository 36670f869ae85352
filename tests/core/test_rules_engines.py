"""R10-R16: which engine, which task first, told as stories; and how the schemes that draw at random spread tasks."""

from __future__ import annotations

import pytest

from trio_sched.core import snapshot
from trio_sched.core.effects import AssignTask
from trio_sched.core.events import Dependency

from .story import Story, accepted, delivered, engine_forgotten, failed, refused, sent


def assignments(effects: list[object]) -> list[tuple[object, object]]:
    return [(effect.task, effect.engine) for effect in effects if isinstance(effect, AssignTask)]


# ---- R10: high-water mark -------------------------------------------------------------------------------------------


def test_r10_at_most_hwm_times_slots_are_outstanding() -> None:
    story = Story(hwm=2)
    for n in range(6):
        story.submit(n)
    assert story.engine("E", slots=2) == [sent(n, "E") for n in range(4)]
    assert story.ok(1) == [delivered(1, "ok", "E"), sent(4, "E")]


def test_r10_zero_is_no_limit() -> None:
    story = Story(hwm=0)
    for n in range(50):
        story.submit(n)
    assert story.engine("E") == [sent(n, "E") for n in range(50)]


def test_r10_an_engine_declares_its_own() -> None:
    story = Story(hwm=1)
    for n in range(9):
        story.submit(n)
    assert story.engine("E", hwm=2) == [sent(0, "E"), sent(1, "E")]
    assert story.engine("F", hwm=1, slots=2) == [sent(2, "F"), sent(3, "F")]
    assert story.engine("G", hwm=0) == [sent(n, "G") for n in range(4, 9)]


# ---- R11: schemes ---------------------------------------------------------------------------------------------------


def test_r11_leastload_takes_the_least_loaded_then_the_least_recently_used() -> None:
    story = Story(hwm=10)
    for engine in ("G", "F", "E"):  # the newest is the least recently used
        story.engine(engine)
    first = [assignments(story.submit(n))[0][1] for n in range(6)]
    assert first == ["E", "F", "G", "E", "F", "G"]
    story.ok(1)  # F: 1, the others 2
    assert story.submit("a") == [accepted("a"), sent("a", "F")]
    assert story.submit("b") == [accepted("b"), sent("b", "E")]


def test_r11_lru_looks_at_no_load() -> None:
    story = Story(scheme="lru", hwm=10)
    for engine in ("F", "E"):
        story.engine(engine)
    assert story.submit(0) == [accepted(0), sent(0, "E")]
    assert story.submit(1) == [accepted(1), sent(1, "F")]
    story.ok(1)
    assert story.submit(2) == [accepted(2), sent(2, "E")]
    story.engine("G")
    assert story.submit(3) == [accepted(3), sent(3, "G")]
    assert story.submit(4) == [accepted(4), sent(4, "F")]


def test_r11_lru_passes_over_the_full() -> None:
    story = Story(scheme="lru", hwm=1)
    for engine in ("F", "E"):
        story.engine(engine)
    story.submit(0)
    story.submit(1)
    assert story.submit(2) == [accepted(2)]
    assert story.ok(1) == [delivered(1, "ok", "F"), sent(2, "F")]


def test_r11_pure_deals_in_turn_in_the_order_of_joining_without_a_limit() -> None:
    story = Story(scheme="pure", hwm=1)
    for engine in ("E", "F"):
        story.engine(engine)
    dealt = [assignments(story.submit(n))[0][1] for n in range(5)]
    assert dealt == ["E", "F", "E", "F", "E"]
    story.engine("G")
    assert [assignments(story.submit(n))[0][1] for n in range(5, 9)] == ["F", "G", "E", "F"]


def test_r11_pure_skips_the_lost_and_the_draining() -> None:
    story = Story(scheme="pure")
    for engine in ("E", "F", "G"):
        story.engine(engine)
    story.lost("E")
    story.drain("F")
    assert [assignments(story.submit(n))[0][1] for n in range(3)] == ["G", "G", "G"]
    story.returned("E")
    assert story.submit("a") == [accepted("a"), sent("a", "E")]


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
def test_r11_pure_refuses_what_it_does_not_look_at(asks: dict[str, object]) -> None:
    story = Story(scheme="pure")
    story.engine("E")
    story.submit("x")
    assert story.submit("a", **asks) == [refused("a")]
    assert "pure" in story.words[0]


def test_r11_pure_takes_empty_values() -> None:
    story = Story(scheme="pure")
    story.engine("E")
    effects = story.submit("a", after=[], follow=[], inputs=(), retries=0, timeout_s=0.0)
    assert effects == [accepted("a"), sent("a", "E")]


def test_r11_pure_returns_the_tasks_of_a_dead_engine() -> None:
    story = Story(scheme="pure")
    story.engine("E")
    story.engine("F")
    story.submit("a")
    assert story.died("E", "a") == [engine_forgotten("E"), sent("a", "F", attempt=2)]


def shares(scheme: str, loads: list[int], tasks: int = 3000) -> list[float]:
    """How often each of three engines is chosen, their loads being as given whenever one is chosen."""
    story = Story(scheme=scheme, hwm=0, check=False)
    names = ["E", "F", "G"]
    for engine in reversed(names):
        story.engine(engine)
    for engine, load in zip(names, loads, strict=True):
        for n in range(load):
            story.submit(f"{engine} {n}", targets=[engine])
    counts = dict.fromkeys(names, 0)
    for n in range(tasks):
        [(_, engine)] = assignments(story.submit(n))
        counts[engine] += 1
        story.ok(n)
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


def test_r11_weighted_hardly_ever_takes_a_loaded_one_beside_an_idle_one() -> None:
    assert shares("weighted", [0, 2, 2], tasks=500) == [1.0, 0.0, 0.0]


def test_r11_twobin_takes_the_less_recently_used_of_two() -> None:
    """By rank in the line of use: both draws must fall behind the k-th."""
    story = Story(scheme="twobin", hwm=0, check=False)
    line = ["E", "F", "G"]
    for engine in reversed(line):
        story.engine(engine)
    tasks, ranks = 3000, [0, 0, 0]
    for n in range(tasks):
        [(_, engine)] = assignments(story.submit(n))
        ranks[line.index(engine)] += 1
        line.remove(engine)
        line.append(engine)
        story.ok(n)
    assert close([rank / tasks for rank in ranks], [5 / 9, 3 / 9, 1 / 9])


@pytest.mark.parametrize("scheme", ["plainrandom", "twobin", "weighted"])
def test_r11_drawing_leaves_excluded_engines_out_and_the_others_alike(scheme: str) -> None:
    story = Story(scheme=scheme, hwm=0, check=False)
    for engine in ("E", "F", "G"):
        story.engine(engine)
    counts, tasks = {"F": 0, "G": 0}, 0
    for n in range(1200):
        story.submit(n, retries=1, targets=["E", "F", "G"])
        if story.where[n].engine == "E":
            [(_, engine)] = assignments(story.error(n))
            counts[str(engine)] += 1
            tasks += 1
        story.ok(n)
    assert tasks > 100
    if scheme != "twobin":  # which looks at the line of use
        assert abs(counts["F"] - counts["G"]) < 4 * tasks**0.5


@pytest.mark.parametrize("scheme", ["leastload", "lru", "plainrandom", "twobin", "weighted"])
def test_r11_every_scheme_fills_exactly_what_has_room(scheme: str) -> None:
    story = Story(scheme=scheme, hwm=2)
    for engine in ("E", "F", "G"):
        story.engine(engine)
    where = [engine for n in range(9) for _, engine in assignments(story.submit(n))]
    assert sorted(where) == ["E", "E", "F", "F", "G", "G"]


@pytest.mark.parametrize("scheme", ["plainrandom", "twobin", "weighted"])
def test_r11_the_same_seed_draws_the_same_engines(scheme: str) -> None:
    def drawn() -> list[object]:
        story = Story(scheme=scheme, hwm=0, seed=7)
        for engine in range(5):
            story.engine(engine)
        return [engine for n in range(50) for _, engine in assignments(story.submit(n))]

    assert drawn() == drawn()


# ---- R12-R14: order -------------------------------------------------------------------------------------------------


def test_r12_by_priority_then_in_submission_order() -> None:
    story = Story(hwm=0)
    for task, priority in [("a", 0), ("b", 1), ("c", -1), ("d", 1), ("e", 0)]:
        story.submit(task, priority=priority)
    assert story.engine("E") == [sent(task, "E") for task in "bdaec"]


def test_r12_a_task_that_comes_back_has_its_old_place() -> None:
    story = Story()
    story.engine("E")
    story.submit("a", retries=1)
    story.submit("b")
    story.submit("c")
    assert story.error("a") == [sent("a", "E", attempt=2)]
    assert story.ok("a") == [delivered("a", "ok", "E"), sent("b", "E")]


def test_r12_a_task_whose_dependencies_are_met_late_has_its_old_place() -> None:
    story = Story()
    story.engine("E")
    story.submit("a")
    story.submit("b", after=["a"])
    story.submit("c")
    assert story.ok("a") == [delivered("a", "ok", "E"), sent("b", "E")]


def test_r13_a_task_that_cannot_go_delays_none_behind_it() -> None:
    story = Story()
    story.engine("F")
    story.engine("E")
    story.submit("long", targets=["F"])
    assert story.submit("waits", targets=["F"], priority=5) == [accepted("waits")]
    assert story.submit("goes") == [accepted("goes"), sent("goes", "E")]
    assert story.ok("long") == [delivered("long", "ok", "F"), sent("waits", "F")]


def test_r14_without_engines_tasks_wait_and_a_new_engine_is_filled_at_once() -> None:
    story = Story(hwm=2)
    assert [story.submit(n) for n in range(3)] == [[accepted(n)] for n in range(3)]
    assert story.engine("E") == [sent(0, "E"), sent(1, "E")]


# ---- R15: fair share ------------------------------------------------------------------------------------------------


def turns(story: Story, engine: str, tasks: int) -> str:
    """End what was sent last, `tasks` times; whose task goes next, by the first letter of its name."""
    order = ""
    running = list(story.where.values())[-1].task
    for _ in range(tasks):
        [(running, _)] = assignments(story.finished(running, "ok", engine))
        order += str(running)[0]
    return order


def queue(story: Story, client: str, tasks: int) -> None:
    for n in range(tasks):
        story.submit(f"{client} {n}", client=client)


def test_r15_clients_take_turns() -> None:
    story = Story()
    for client in "xy":
        story.client(client)
    queue(story, "x", 20)
    queue(story, "y", 20)
    story.engine("E")
    assert turns(story, "E", 9) == "yxyxyxyxy"


def test_r15_shares_by_weight() -> None:
    story = Story()
    story.client("x", weight=1.0)
    story.client("y", weight=4.0)
    queue(story, "x", 20)
    queue(story, "y", 20)
    story.engine("E")
    order = turns(story, "E", 20)
    assert order == "yyyyx" * 4


def test_r15_one_that_was_idle_gets_no_credit_for_it() -> None:
    story = Story()
    for client in "xy":
        story.client(client)
    queue(story, "x", 40)
    story.engine("E")
    assert turns(story, "E", 20) == "x" * 20
    queue(story, "y", 10)
    assert turns(story, "E", 8) == "xyxyxyxy"


def test_r15_one_that_becomes_active_when_nobody_is_starts_at_the_last_one_sent() -> None:
    story = Story(hwm=0)
    for client in "xy":
        story.client(client)
    story.engine("E", hwm=1)
    queue(story, "x", 10)
    assert turns(story, "E", 9) == "x" * 9  # x's virtual time is 10 now, its last task was sent at 9
    queue(story, "y", 2)
    story.submit("x more", client="x")
    assert turns(story, "E", 3) == "yxy"


def test_r15_priority_comes_first() -> None:
    story = Story(hwm=0)
    for client in "xy":
        story.client(client)
    story.submit("x 1", client="x")
    story.submit("y 1", client="y", priority=1)
    story.submit("y 2", client="y", priority=1)
    assert story.engine("E") == [sent("y 1", "E"), sent("y 2", "E"), sent("x 1", "E")]


def test_r15_a_ready_task_that_may_go_to_one_more_engine_keeps_its_client_in_its_turn() -> None:
    story = Story()
    story.client("you")
    story.engine("E")
    story.engine("F")
    story.submit("e", client="you", targets=["E"])
    story.ok("e")
    story.submit("on E", targets=["E"])
    story.submit("f", targets=["F"])
    story.submit("either", client="you", follow=Dependency(("e", "f"), all=False))  # ready, but E is busy
    story.submit("mine", targets=["F"])
    assert story.ok("f") == [delivered("f", "ok", "F"), sent("either", "F")]


# ---- R16: resources -------------------------------------------------------------------------------------------------

GPU, TWO_GPUS = (("gpu", 1.0),), (("gpu", 2.0),)


def test_r16_only_where_they_fit_what_is_free() -> None:
    story = Story(hwm=0)
    story.engine("F", slots=4, gpu=2.0)
    story.engine("E", slots=4)
    assert story.submit("a", resources=GPU) == [accepted("a"), sent("a", "F")]
    assert story.submit("b", resources=TWO_GPUS) == [accepted("b")]
    assert story.submit("c", resources=GPU) == [accepted("c"), sent("c", "F")]
    assert story.submit("d", resources=GPU) == [accepted("d")]
    assert story.ok("a") == [delivered("a", "ok", "F"), sent("d", "F")]
    assert story.ok("c") == [delivered("c", "ok", "F")]
    assert story.ok("d") == [delivered("d", "ok", "F"), sent("b", "F")]


def test_r16_what_no_engine_fits_waits() -> None:
    story = Story()
    story.engine("E", gpu=1.0)
    assert story.submit("a", resources=TWO_GPUS) == [accepted("a")]
    assert story.submit("b") == [accepted("b"), sent("b", "E")]
    assert story.engine("F", gpu=2.0) == [sent("a", "F")]


def test_r16_tasks_sent_ahead_hold_nothing_until_they_run() -> None:
    story = Story(hwm=3)
    story.engine("E", slots=1, gpu=1.0)
    assert story.submit("plain") == [accepted("plain"), sent("plain", "E")]
    assert story.submit("a", resources=GPU) == [accepted("a"), sent("a", "E")]
    assert story.submit("b", resources=GPU) == [accepted("b"), sent("b", "E")]
    assert story.ok("plain") == [delivered("plain", "ok", "E")]  # now "a" runs and holds the gpu
    assert story.submit("c", resources=GPU) == [accepted("c")]
    assert story.ok("a") == [delivered("a", "ok", "E")]  # now "b" does
    assert story.ok("b") == [delivered("b", "ok", "E"), sent("c", "E")]


def test_r16_the_longest_waiting_that_fits_takes_the_place() -> None:
    story = Story(hwm=2)
    story.engine("E", slots=2, gpu=2.0)
    story.submit("one", resources=GPU)
    story.submit("two")
    story.submit("both", resources=GPU)
    story.submit("plain")
    assert story.ok("two") == [delivered("two", "ok", "E")]  # "both" runs: no gpu is free
    assert story.submit("x", resources=GPU) == [accepted("x")]
    assert story.submit("y") == [accepted("y"), sent("y", "E")]


def test_r16_fractions_add_up() -> None:
    story = Story(hwm=0)
    story.engine("E", slots=3, gpu=0.3)
    assert story.submit("a", resources=(("gpu", 0.1),)) == [accepted("a"), sent("a", "E")]
    assert story.submit("b", resources=(("gpu", 0.2),)) == [accepted("b"), sent("b", "E")]
    assert story.submit("c", resources=(("gpu", 0.1),)) == [accepted("c")]


def test_r16_amounts_that_are_not_offered_are_none() -> None:
    story = Story()
    story.engine("E", gpu=1.0)
    assert story.submit("a", resources=(("gpu", 1.0), ("license", 1.0))) == [accepted("a")]
    assert story.cancel("a") == [failed("a", "TaskCancelled")]


def test_r16_a_task_goes_only_to_engines_of_its_kind() -> None:
    story = Story()
    story.engine("native")
    assert story.submit("a", kind="other") == [accepted("a")]
    assert "no engine has a kind of 'other'" in snapshot.explain(story.scheduler, "a", 0.0)
    assert story.submit("b") == [accepted("b"), sent("b", "native")]
    assert story.engine("foreign", kind="other") == [sent("a", "foreign")]
    assert story.submit("c", targets=["native"], kind="other") == [accepted("c")]
    assert story.died("native", "b") == [engine_forgotten("native"), failed("c", "ImpossibleDependency", None)]


def test_r29_an_engine_shows_that_it_drains_and_when_it_is_empty() -> None:
    story = Story()
    story.engine("E", hwm=2)
    story.submit("a")
    states = []
    for step in (lambda: None, lambda: story.drain("E"), lambda: story.ok("a")):
        step()
        [row] = snapshot.engines(story.scheduler, 0.0)
        states.append(row["state"])
    assert states == ["open", "draining", "drained"]
