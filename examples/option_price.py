"""Price European call options by simulation, with numpy arrays as arguments and results.

Each task simulates its own paths and returns the sums for all strikes. Arrays travel out of band, without a copy where
the socket allows that. The formula of Black and Scholes checks the prices.

    trio-sched run examples/option_price.py
"""

from __future__ import annotations

import math
import sys

import numpy as np
from numpy.typing import NDArray

from trio_sched import Client

SPOT, RATE, VOLATILITY, YEARS = 100.0, 0.03, 0.25, 1.0
TASKS, PATHS_PER_TASK = 64, 100_000

Prices = NDArray[np.float64]


def simulate(seed: int, paths: int, strikes: Prices) -> tuple[Prices, Prices]:
    """Return the sum and the sum of squares of the discounted payoffs over `paths` paths, for each strike."""
    normal = np.random.default_rng(seed).standard_normal(paths)
    final = SPOT * np.exp((RATE - VOLATILITY**2 / 2) * YEARS + VOLATILITY * math.sqrt(YEARS) * normal)
    total, squares = np.empty_like(strikes), np.empty_like(strikes)
    for index, strike in enumerate(strikes):
        payoff = math.exp(-RATE * YEARS) * np.maximum(final - strike, 0.0)
        total[index], squares[index] = payoff.sum(), (payoff**2).sum()
    return total, squares


def black_scholes(strike: float) -> float:
    """Return the exact price."""
    spread = VOLATILITY * math.sqrt(YEARS)
    upper = (math.log(SPOT / strike) + (RATE + VOLATILITY**2 / 2) * YEARS) / spread
    below = [(1 + math.erf(x / math.sqrt(2))) / 2 for x in (upper, upper - spread)]
    return SPOT * below[0] - strike * math.exp(-RATE * YEARS) * below[1]


def main() -> int:
    strikes = np.linspace(80.0, 120.0, 9)
    count = TASKS * PATHS_PER_TASK
    with Client() as client:
        parts = list(client.map(simulate, range(TASKS), [PATHS_PER_TASK] * TASKS, [strikes] * TASKS))
    price = np.sum([total for total, _ in parts], axis=0) / count
    spread = np.sqrt((np.sum([squares for _, squares in parts], axis=0) / count - price**2) / count)

    wrong = 0
    print("    strike     simulated    exact      off by")
    for strike, simulated, error in zip(strikes, price, spread, strict=True):
        exact = black_scholes(strike)
        off = abs(simulated - exact) / error
        wrong += off > 5
        print(f"    {strike:6.1f}    {simulated:9.4f}  {exact:9.4f}    {off:4.1f} standard errors")
    print(f"{count} paths in {TASKS} tasks")
    if wrong:
        print(f"WRONG: {wrong} prices are off by more than five standard errors")
        return 1
    print("OK: equal to the formula within the error of the simulation")
    return 0


if __name__ == "__main__":
    sys.exit(main())
