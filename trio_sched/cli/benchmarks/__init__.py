"""What `trio-sched bench` measures: each measurement is a function that returns rows of one table.

`calls` is what the tasks do, `hosts` brings schedulers up and reads what processes cost, `wire` measures a scheduler
from a client, `pools` the same with the pools of the field, `core` the pure core alone,
`ipyparallel` the drop-in controller beside ipyparallel's own, `tables` prints rows.
"""

from __future__ import annotations
