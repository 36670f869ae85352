"""The settings of the scheduler, and the limits that they set to a submission."""

from __future__ import annotations

from msgspec import Struct

from trio_sched.core.events import TaskSpec
from trio_sched.core.placement import Scheme


class Settings(Struct, frozen=True):
    """What the scheduler is configured with; fixed while it runs."""

    scheme: Scheme = "leastload"
    #: The most outstanding tasks of an engine, for each of its slots (R10); 0: no limit.
    hwm: int = 10
    #: Seconds for which the tasks of a lost engine are kept for it (R20).
    grace_s: float = 5.0
    #: The number of ended tasks that are kept (R22).
    keep_finished: int = 100_000
    #: The most tasks that one submission may name in after, follow and inputs together.
    max_dependencies: int = 100_000
    #: The most targets that one submission may name (R7).
    max_targets: int = 1_000


def find_refusal(spec: TaskSpec, settings: Settings) -> str:
    """The reason for which a submission with this spec is refused (R2, R7, R11); "" if it is not."""
    count = len(spec.inputs)
    for named in (spec.after, spec.follow):
        if named is not None:
            count += len(named.tasks)
            if not (named.success or named.failure):
                what = "after" if named is spec.after else "follow"
                return f"{what} counts neither success nor failure: set at least one of them"
    if count > settings.max_dependencies:
        return f"{count} dependencies; the limit is {settings.max_dependencies} (max_dependencies)"
    if spec.targets is not None and len(spec.targets) > settings.max_targets:
        return f"{len(spec.targets)} targets; the limit is {settings.max_targets} (max_targets)"
    if spec.retries < 0 or (spec.timeout_s or 0) < 0 or spec.backoff_s < 0:
        return "retries, timeout and backoff must not be negative"
    if settings.scheme == "pure" and (
        count or spec.targets is not None or spec.resources or spec.retries or spec.timeout_s
    ):
        return (
            "the scheme 'pure' does not support dependencies, inputs, targets, resources, retries and timeouts: "
            "leave them out, or run the scheduler with another scheme"
        )
    return ""
