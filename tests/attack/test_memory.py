"""The memory held for clients is limited, honest clients are served, and the memory is released."""

from __future__ import annotations

import pytest

from tests.attack.harness import Attacker, HonestClient, Outcome, Server

CLIENT_BYTES = 200 << 20
TOTAL_BYTES = 600 << 20
MB = 1_000_000
#: Data in transit, growth between two readings, and the memory of the scheduler itself.
MARGIN_BYTES = 150 << 20


def attack(what: str, count: int = 1, calls: int = 2000) -> tuple[Outcome, list[str]]:
    limits = ("--client-bytes", str(CLIENT_BYTES), "--total-bytes", str(TOTAL_BYTES))
    with Server("-n", "2", *limits) as server, HonestClient(server) as honest:
        attackers = [Attacker("greedy_client.py", server.client_file, what, calls, MB) for _ in range(count)]
        outcome = honest.during(*attackers)
    return outcome, [attacker.first_line for attacker in attackers]


@pytest.mark.attack
def test_submit_waits_when_a_client_has_used_its_share() -> None:
    outcome, (line,) = attack("calls")
    submitted = int(line.split()[1])
    assert CLIENT_BYTES / 2 / MB < submitted < CLIENT_BYTES / MB + 100
    assert outcome.rss_peak < outcome.rss_before + CLIENT_BYTES + MARGIN_BYTES
    outcome.check()


@pytest.mark.attack
def test_submissions_beyond_the_credit_are_refused() -> None:
    outcome, _ = attack("overdraft")
    assert outcome.rss_peak < outcome.rss_before + CLIENT_BYTES + MARGIN_BYTES
    outcome.check()


@pytest.mark.attack
def test_several_greedy_clients_share_the_total() -> None:
    outcome, lines = attack("calls", 5)
    assert all(int(line.split()[1]) > 20 for line in lines)
    assert outcome.rss_peak < outcome.rss_before + TOTAL_BYTES + MARGIN_BYTES
    outcome.check()


@pytest.mark.attack
def test_unread_results_pause_their_client() -> None:
    outcome, _ = attack("results")
    assert outcome.rss_peak < outcome.rss_before + CLIENT_BYTES + MARGIN_BYTES
    outcome.check()


@pytest.mark.attack
def test_many_clients_that_ignore_their_credit_exceed_the_total_by_one_overdraft() -> None:
    total = 128 << 20
    with Server("-n", "2", "--total-bytes", str(total)) as server, HonestClient(server) as honest:
        outcome = honest.during(Attacker("overdrafts.py", server.client_file, 20, 40, MB))
    assert outcome.rss_peak < outcome.rss_before + total * 5 // 4 + MARGIN_BYTES
    outcome.check(10.0)
