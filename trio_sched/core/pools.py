"""All requirements, and the next task to go: dispatch (R12, R13).

After every event no ready task has an engine with room, so only what the event changed can make one go: the pools in
which a task became ready or an engine got room. Those are `hot`; dispatch compares the heads of their queues, a
handful, and cools each when nothing in it can go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from trio_sched.core.engines import Engine
from trio_sched.core.ids import EngineId
from trio_sched.core.placement import Room
from trio_sched.core.ready import Client, Pool, ReadyQueue
from trio_sched.core.task import NOBODY, Task

_IDLE_POOLS = 256
"""Requirements on resources that are kept although nothing waits under them: finding their engines costs a walk over
all.
"""

Resources = tuple[tuple[str, float], ...]


class Pools:
    """The pools by their requirement, and which of them are hot."""

    __slots__ = ("_by_key", "_by_target", "_new_room", "anyone", "engines", "hot")

    def __init__(self, new_room: Callable[[], Room]) -> None:
        self._new_room = new_room
        self._by_key: dict[tuple[frozenset[EngineId] | None, Resources, str], Pool] = {}
        self._by_target: dict[EngineId, dict[Pool, None]] = {}
        self.engines: dict[EngineId, Engine] = {}
        """All registered engines."""
        self.hot: dict[Pool, None] = {}
        self.anyone = self.find(None, ())
        """The pool of native tasks that ask for nothing."""

    def fresh(self) -> Pools:
        """Empty pools with the same scheme, without engines."""
        return Pools(self._new_room)

    def __iter__(self) -> Iterator[Pool]:
        return iter(self._by_key.values())

    def find(self, targets: frozenset[EngineId] | None, resources: Resources, kind: str = "") -> Pool:
        """The pool for a requirement, made when it is new."""
        pool = self._by_key.get((targets, resources, kind))
        if pool is None:
            pool = Pool(targets, resources, kind, self._new_room(), self.engines)
            self._by_key[targets, resources, kind] = pool
            candidates = (
                self.engines.values()
                if targets is None
                else [self.engines[target] for target in targets if target in self.engines]
            )
            for engine in candidates:
                if pool.matches(engine):
                    self._enlist(pool, engine)
            for target in targets or ():
                self._by_target.setdefault(target, {})[pool] = None
        return pool

    def tidy(self, pool: Pool) -> None:
        """Forget the pool if nothing is left in it and it is cheap to make again."""
        if pool.live or pool.held or pool.bound or pool is self.anyone:
            return
        if pool.targets is None and len(self._by_key) < _IDLE_POOLS:
            return
        del self._by_key[pool.key]
        self.hot.pop(pool, None)
        for engine in pool.members.values():
            engine.pools.remove(pool)
        for target in pool.targets or ():
            pools = self._by_target[target]
            del pools[pool]
            if not pools:
                del self._by_target[target]

    def join(self, engine: Engine) -> None:
        """An engine registered."""
        self.engines[engine.id] = engine
        for pool in [p for p in self._by_key.values() if p.targets is None]:
            if pool.matches(engine):
                self._enlist(pool, engine)
        for pool in self._by_target.get(engine.id, ()):
            if pool.matches(engine):
                self._enlist(pool, engine)

    def leave(self, engine: Engine) -> list[Pool]:
        """An engine is unregistered; returns the pools that name it as a target."""
        del self.engines[engine.id]
        left, engine.pools = engine.pools, []
        for pool in left:
            del pool.members[engine.id]
            pool.room.update(engine, False)
            if pool.live and len(pool.queues) > 1:
                self.hot[pool] = None  # an exclusion may not be looked at any longer (R18)
        return list(self._by_target.get(engine.id, ()))

    def _enlist(self, pool: Pool, engine: Engine) -> None:
        pool.members[engine.id] = engine
        engine.pools.append(pool)
        pool.room.update(engine, pool.takes(engine))
        if pool.live:
            self.hot[pool] = None

    def changed(self, engine: Engine) -> None:
        """The engine's load, room or time of use changed."""
        for pool in engine.pools:
            takes = pool.takes(engine)
            pool.room.update(engine, takes)
            if takes and pool.live:
                self.hot[pool] = None

    def pause(self, client: Client) -> None:
        """The client's ready tasks are set apart (R34). Costs the number of queues."""
        for pool in self._by_key.values():
            for queue in pool.queues.values():
                queue.pause(client)

    def resume(self, client: Client) -> None:
        """The client's ready tasks can go again."""
        for pool in self._by_key.values():
            for queue in pool.queues.values():
                queue.resume(client)
            if pool.live:
                self.hot[pool] = None

    def push(self, task: Task, pool: Pool) -> None:
        """A task became ready."""
        if task.refused or task.failed:
            pool.queue(task.refused, task.failed).push(task)
        else:
            pool.plain.push(task)
        self.hot[pool] = None

    def remove(self, task: Task, queue: ReadyQueue) -> None:
        """A task leaves its queue, not by dispatch."""
        queue.remove(task)
        self.emptied(queue)

    def emptied(self, queue: ReadyQueue) -> None:
        """Forget the queue, and its pool, if nothing is left in them."""
        pool = queue.pool
        if not queue.live and not queue.held and queue is not pool.plain:
            del pool.queues[queue.refused, queue.failed]
        if not pool.live and pool is not self.anyone:
            self.tidy(pool)

    def next(self) -> tuple[Task, Engine] | None:
        """Take out the ready task that goes next, and choose its engine; None when none can go."""
        hot = self.hot
        if len(hot) == 1:  # nothing to compare with
            (pool,) = hot
            if pool.targets is None and len(pool.queues) == 1:
                engine = pool.room.pick(NOBODY) if pool.live else None
                if engine is not None:
                    return pool.plain.pop(), engine
                hot.clear()
                return None
        return self._compared() if hot else None

    def _compared(self) -> tuple[Task, Engine] | None:
        best: tuple[tuple[int, float, int, int], ReadyQueue, frozenset[EngineId]] | None = None
        for pool in list(self.hot):
            can_go = False
            for queue in pool.queues.values():
                if not queue.live:
                    continue
                barred = pool.barred(queue.refused, queue.failed)
                if pool.room.any_but(barred):
                    can_go = True
                    task = queue.head()
                    turn = (-queue.top, task.client.vtime, task.client.number, task.seq)
                    if best is None or turn < best[0]:
                        best = (turn, queue, barred)
            if not can_go:
                del self.hot[pool]
        if best is None:
            return None
        _, queue, barred = best
        engine = queue.pool.room.pick(barred)
        if engine is None:  # `any_but` said that there is one
            raise AssertionError("a scheme found no engine where there is one")
        task = queue.pop()
        self.emptied(queue)
        return task, engine
