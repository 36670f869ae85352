"""trio_sched: a task scheduler for Python."""
