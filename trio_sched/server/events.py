"""Events and effects that the server adds to those of the core.

Readers, fronts and the auditor make *events*: immutable facts about what arrived, which name a connection but no
session, because only the actor's turn knows sessions. The turn returns *effects*, which the outbox carries out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from msgspec import Struct

from trio_sched.core.effects import Effect as CoreEffect
from trio_sched.core.events import Event as CoreEvent
from trio_sched.core.events import PayloadRef
from trio_sched.core.ids import TaskId
from trio_sched.server.peer_connection import PeerConnection
from trio_sched.server.sessions import Session
from trio_sched.wire.native import Call, Frame, FromPeer, Hello, Message, TaskResult

# ---- events: messages of peers ---------------------------------------------------------------------------------------


class PeerEvent(Struct, frozen=True, gc=False):
    """A message arrived over `connection` at `received_at`, the time of receipt and not of handling."""

    connection: PeerConnection
    received_at: float


class HelloReceived(PeerEvent, frozen=True, gc=False):
    """A peer said Hello and proved its role."""

    hello: Hello


class MessageRejected(PeerEvent, frozen=True, gc=False):
    """A message was malformed or not allowed (R25). `kind` as in WireError.

    The sender gets an Error if it has a session, or if the message was a Hello (`is_hello`).
    """

    kind: str
    reason: str
    is_hello: bool = False


class MessageBeforeHello(PeerEvent, frozen=True, gc=False):
    """A message arrived while the connection had no role; its Hello may have been accepted since."""

    message: FromPeer
    frames: Sequence[Frame]


class ConnectionAlive(PeerEvent, frozen=True, gc=False):
    """The transport received something other than a message from the peer, such as the pong of a WebSocket."""


class HeartbeatReceived(PeerEvent, frozen=True, gc=False):
    """A peer sent a Ping. `received`: the last message of results that a client has; 0: none is named."""

    received: int = 0


class SessionClosed(PeerEvent, frozen=True, gc=False):
    """A peer left for good. `cancel`: its unfinished tasks are to be cancelled."""

    reason: str
    cancel: bool = False


class SubmissionsReceived(PeerEvent, frozen=True, gc=False):
    """A client submitted tasks, whose records passed the checks that need no session.

    `payloads` are the calls with their frames. `sizes` has the bytes of each task whose payload is large, by the id in
    the message. `functions` are those whose digest is right; `dropped` the digests that no later task will name.
    """

    calls: Sequence[Call]
    payloads: Sequence[PayloadRef]
    sizes: Mapping[int, int]
    functions: Mapping[bytes, bytes]
    dropped: Sequence[bytes]
    received: int


class CancelReceived(PeerEvent, frozen=True, gc=False):
    """A client requested the cancellation of tasks, by counter or by full id."""

    tasks: Sequence[int]


class QueryReceived(PeerEvent, frozen=True, gc=False):
    """A client sent a query: the name of a view."""

    request: int
    what: str
    task: TaskId


class WatchChanged(PeerEvent, frozen=True, gc=False):
    """A client began, or stopped, to watch what happens (R28)."""

    on: bool


class StopReceived(PeerEvent, frozen=True, gc=False):
    """A client requested the shutdown of the scheduler."""

    reason: str


class AnswersReceived(PeerEvent, frozen=True, gc=False):
    """An engine answered for tasks. `payloads` are the answers with their frames, which take `frame_bytes`."""

    answers: Sequence[TaskResult]
    payloads: Sequence[PayloadRef]
    frame_bytes: int


class RecallAnswersReceived(PeerEvent, frozen=True, gc=False):
    """An engine answered a Recall: the tasks that it gave back, and those that it keeps."""

    given: Sequence[int]
    kept: Sequence[int]


class DrainReceived(PeerEvent, frozen=True, gc=False):
    """An engine is about to end and takes no more tasks (R29)."""


class DeathReported(PeerEvent, frozen=True, gc=False):
    """A nanny reported the death of a worker (R20).

    `engine` 0: only the `pid` is known. `running`: the tasks that ran; None: not known.
    """

    engine: int
    pid: int
    reason: str
    running: tuple[int, ...] | None


# ---- events: everything else -----------------------------------------------------------------------------------------


class ConnectionLost(Struct, frozen=True, gc=False):
    """A connection ended: its transport reported the end, or a send failed. The session stays."""

    connection: PeerConnection
    reason: str


class SubmissionRejected(Struct, frozen=True, gc=False):
    """A submission is not valid. It is refused in its order, because the answers to submissions are counted."""

    client: int
    task: int
    reason: str


class AuditDue(Struct, frozen=True, gc=False):
    """A heartbeat period is over: sessions are checked for silence, and memory is counted."""


class EnginesExpected(Struct, frozen=True, gc=False):
    """`count` engines are being started together with the scheduler; 0: none is expected any more."""

    count: int


class StopRequested(Struct, frozen=True, gc=False):
    """The scheduler is to shut down (R29)."""

    reason: str


ServerEvent: TypeAlias = PeerEvent | ConnectionLost | SubmissionRejected | AuditDue | EnginesExpected | StopRequested
Event: TypeAlias = CoreEvent | ServerEvent

# ---- effects ---------------------------------------------------------------------------------------------------------


class SendWelcome(Struct, frozen=True, gc=False):
    """Answer the Hello on this connection.

    On a resumed session, send the messages of results after number `received` again. `renewed`: the session was
    forgotten, and begins again under its number.
    """

    session: Session
    connection: PeerConnection
    resumed: bool
    received: int = 0
    renewed: bool = False


class SendError(Struct, frozen=True, gc=False):
    """Send an Error over a connection, which may have no session."""

    connection: PeerConnection
    kind: str
    reason: str


class SendMessage(Struct, frozen=True, gc=False):
    """Send a message to a peer, if it is connected."""

    session: Session
    message: Message
    frames: tuple[Frame, ...] = ()


class SendEngineCount(Struct, frozen=True, gc=False):
    """Tell the clients which engines are connected now."""


ServerEffect: TypeAlias = SendWelcome | SendError | SendMessage | SendEngineCount
Effect: TypeAlias = CoreEffect | ServerEffect
