"""The functions that clients sent, by digest: a function travels once from each client and once to each engine.

A function is held by the sessions that sent it and have not dropped it; when the last lets go it is forgotten, here
and on the engines. A client that left for good while its tasks go on (R27) holds its functions until they have ended.
"""

from __future__ import annotations

from trio_sched.wire.payload import digest as digest_of


class Functions:
    """Bodies by digest, and who holds them."""

    def __init__(self) -> None:
        self.bodies: dict[bytes, bytes] = {}
        self._holders: dict[bytes, set[int]] = {}

    def hold(self, session: int, digest: bytes, body: bytes) -> bytes | None:
        """`session` sent a function. Returns the one digest object to share; None when it is not the digest of
        `body`."""
        if digest not in self._holders:
            if digest_of(body) != digest:
                return None
            self.bodies[digest] = body
            self._holders[digest] = set()
        elif self.bodies[digest] != body:
            return None
        self._holders[digest].add(session)
        return digest

    def let_go(self, session: int, digest: bytes) -> bool:
        """`session` will not name it any more. True: nobody holds it now, so it is forgotten."""
        holders = self._holders.get(digest)
        if holders is None or session not in holders:
            return False
        holders.discard(session)
        if holders:
            return False
        del self._holders[digest], self.bodies[digest]
        return True
