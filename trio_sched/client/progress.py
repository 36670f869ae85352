"""The progress bar of `map(..., progress=True)`: tqdm's, for terminals and notebooks. Imported only for a bar."""

from __future__ import annotations

import threading
from collections.abc import Collection
from concurrent.futures import Future
from typing import Any

from tqdm.auto import tqdm


def show_progress(futures: Collection[Future[Any]], label: str) -> None:
    """Show a bar on standard error that counts these futures as they end, in any order, until all have ended.

    The bar is drawn at most ten times a second, and counts the failed futures after the others.
    """
    if not futures:
        return
    bar = tqdm(total=len(futures), desc=label, unit="task")
    lock = threading.Lock()
    failed = 0

    def count(future: Future[Any]) -> None:
        nonlocal failed
        has_failed = future.cancelled() or future.exception() is not None
        with lock:
            if has_failed:
                failed += 1
                bar.set_postfix(failed=failed, refresh=False)
            bar.update()
            if bar.n == bar.total:
                bar.close()

    for future in futures:
        future.add_done_callback(count)
