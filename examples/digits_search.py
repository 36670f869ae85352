"""Search the parameters of a classifier on scikit-learn's handwritten digits.

One task loads the data on an engine, and every trial gets the future of that task as an argument, so the arrays reach
the engines without passing through this script. The example needs scikit-learn: `pip install 'trio_sched[examples]'`.

    trio-sched run examples/digits_search.py
"""

from __future__ import annotations

import importlib.util
import itertools
import sys
from typing import Any

from trio_sched import Client

PENALTIES = (0.1, 1.0, 10.0)
WIDTHS = (0.0001, 0.001, 0.01)


def load() -> tuple[Any, Any]:
    """Return the images as rows of pixels, and the digits that they show."""
    from sklearn.datasets import load_digits

    pixels, digits = load_digits(return_X_y=True)
    return pixels, digits


def score(data: tuple[Any, Any], penalty: float, width: float) -> float:
    """Return the mean accuracy of a support vector classifier over three folds."""
    from sklearn.model_selection import cross_val_score
    from sklearn.svm import SVC

    pixels, digits = data
    return float(cross_val_score(SVC(C=penalty, gamma=width), pixels, digits, cv=3).mean())


def main() -> int:
    if importlib.util.find_spec("sklearn") is None:
        print("SKIPPED: scikit-learn is not installed (pip install scikit-learn)")
        return 0
    trials = list(itertools.product(PENALTIES, WIDTHS))
    with Client() as client:
        data = client.submit(load)
        scores = [client.submit(score, data, penalty, width) for penalty, width in trials]
        results = [future.result() for future in scores]
    for (penalty, width), accuracy in zip(trials, results, strict=True):
        print(f"    penalty {penalty:<6} width {width:<8} accuracy {accuracy:.4f}")
    best, (penalty, width) = max(zip(results, trials, strict=True))
    print(f"best: {best:.4f} with penalty {penalty}, width {width}")
    if best != score(load(), penalty, width):
        print("DIFFERENT from the same trial without engines")
        return 1
    print("OK: equal to the same trial without engines")
    return 0


if __name__ == "__main__":
    sys.exit(main())
