"""The native protocol, version 1: a message is a msgpack map and the frames that follow it.

Peers of the scheduler are *clients*, *engines* (one for each worker) and *nannies* (one for each machine). Every
connection begins with `Hello`, answered by `Welcome` or `Error`. Each message is a tagged struct whose tag is the value
of the key "type". Unknown keys are ignored and missing keys take their defaults, so that versions can grow. WebSocket
clients use the same messages as JSON text or msgpack binary.

Frames. A pickled call or value is a *body* and any number of out-of-band buffers (pickle protocol 5). A small body
travels inside its record. `frames` is the number of the frames behind the message that belong to the record, in the
order of the records; when `body` is empty and `frames` is not 0, the first of them is the body, which was large. Where
a connection has no frames (WebSocket), a body of any size travels inside its record, and its buffers in `attached`. A
call with `inputs` counts their frames in its own `frames`: first those of the call itself, then those of each input in
order, each with its own `frames`.

Reliability. Submissions are acknowledged by count: `accepted` is the number of this session's submissions that the
scheduler has accepted or refused, in the order sent. It returns credit, and says what a client need not send again.
`Results` for a client carry `seq`; the client acknowledges the highest one that it has (`received`), and after a
reconnection the scheduler sends the later ones again. An engine keeps each result until `acked`, a count of results in
the order sent, covers it; after a reconnection it sends the others again (after the `Welcome`, whose `accepted` is that
count). Its `Hello` lists the tasks that it holds, among them those with an unacknowledged result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, TypeVar, get_args

import msgspec
from msgspec import Struct

from trio_sched.core.events import Outcome
from trio_sched.errors import WireError

VERSION = 1
#: The size up to which a body travels inside its record.
INLINE_BYTES = 16 * 1024
FUNCTION_DIGEST_BYTES = 16
#: What a call counts in `credit_bytes`, in addition to its body and frames.
TASK_BYTES = 512
#: What each task, engine or resource that the options of a call name counts in `credit_bytes`.
NAMED_BYTES = 64

T = TypeVar("T")
Frame: TypeAlias = bytes | bytearray | memoryview


def sendable(text: str) -> str:
    """Escape characters that UTF-8 cannot encode, such as those that stand for undecodable bytes of a file name."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


class Options(Struct, omit_defaults=True):
    """The options of a submission, as in `core.events.TaskSpec`. Ids of the sender's own tasks may be counters."""

    after: list[int] = []
    after_all: bool = True
    after_success: bool = True
    after_failure: bool = False
    follow: list[int] = []
    follow_all: bool = True
    follow_success: bool = True
    follow_failure: bool = False
    inputs: list[int] = []
    targets: list[int] | None = None
    resources: dict[str, float] = {}
    priority: int = 0
    retries: int = 0
    timeout_s: float | None = None
    backoff_s: float = 0.0
    same_engine: bool = True
    label: str = ""


def options_bytes(options: Options) -> int:
    """What the options of a call count in `credit_bytes`: `NAMED_BYTES` for each task, engine or resource that they
    name, and the length of the label; 0 if `TASK_BYTES` cover that.
    """
    named = len(options.after) + len(options.follow) + len(options.inputs) + len(options.resources)
    if options.targets is not None:
        named += len(options.targets)
    size = NAMED_BYTES * named + len(options.label)
    return size if size > TASK_BYTES else 0


class RemoteError(Struct, omit_defaults=True):
    """A remote exception in words, for peers that cannot unpickle it, and for logs."""

    name: str
    message: str = ""
    traceback: str = ""


class Call(Struct, omit_defaults=True, gc=False):
    """A call, as a client submits it and as an engine receives it.

    Either `fn`, the digest of a pickled function, with `body`, the pickled (args, kwargs); or `call`, "module:name",
    with `args` and `kwargs` as plain data. The scheduler sets `attempt`, the full id, and `inputs`, the results to
    which the body refers (R9).
    """

    id: int
    fn: bytes = b""
    body: bytes = b""
    frames: int = 0
    call: str = ""
    args: list[Any] | None = None
    kwargs: dict[str, Any] | None = None
    options: Options | None = None
    attempt: int = 0
    inputs: list[Value] | None = None
    resources: dict[str, float] | None = None
    #: The record's frames, on connections without frames (WebSocket).
    attached: list[bytes] | None = None


class Value(Struct, omit_defaults=True, gc=False):
    """The value of a task as an input of another task. `codec` and `frames` are as in `TaskResult`."""

    body: bytes = b""
    frames: int = 0
    codec: Literal["pickle", "msgpack"] = "pickle"


class TaskResult(Struct, omit_defaults=True, gc=False):
    """The end of a task, as an engine reports it (`outcome` "ok", "error" or "unmet") and as its client receives it."""

    id: int
    outcome: Outcome | Literal["unmet"] = "ok"
    #: The pickled value; with outcome "error" the pickled exception, empty if it cannot be pickled (then see `error`).
    body: bytes = b""
    frames: int = 0
    #: "msgpack": the body is plain data (calls by name).
    codec: Literal["pickle", "msgpack"] = "pickle"
    #: The plain data, on JSON connections only.
    value: Any = None
    error: RemoteError | None = None
    reason: str = ""
    #: The number of the engine that ran the task; -1: the task never ran.
    engine: int = -1
    attempt: int = 0
    stdout: str = ""
    stderr: str = ""
    #: How long the call itself ran.
    took_s: float = 0.0
    #: The record's frames, on connections without frames (WebSocket).
    attached: list[bytes] | None = None


# ---- any peer to the scheduler --------------------------------------------------------------------------------------


class Hello(Struct, tag="hello", omit_defaults=True):
    """The first message of a connection. `session`, `secret` and `scheduler` resume a session."""

    role: Literal["client", "engine", "nanny"]
    version: int = VERSION
    #: The role's token from the connection file, which proves that the peer may have this role.
    token: str = ""
    session: int = 0
    secret: str = ""
    #: The scheduler instance to which the resumed session belongs.
    scheduler: str = ""
    name: str = ""
    host: str = ""
    pid: int = 0
    python: str = ""
    # clients
    #: The highest `seq` of `Results` that the client has.
    received: int = 0
    #: The client's accepted submissions, as far as the client knows. With it, the session can go on after the scheduler
    #: forgot it because nothing was left of it (`Welcome.renewed`); -1: it cannot.
    accepted: int = -1
    #: The client sends queries and orders (Query, Watch, Cancel, Stop) but submits nothing; it is admitted when the
    #: number of clients has reached its limit.
    admin: bool = False
    weight: float = 1.0
    #: The client's working directory.
    cwd: str = ""
    #: The client's sys.path.
    path: list[str] = []
    #: The client's tasks are cancelled when its session ends.
    cancel_on_leave: bool = False
    # engines
    #: The nanny's session: its heartbeats, and its report of a death, count for the engine. 0: no nanny.
    nanny: int = 0
    slots: int = 1
    hwm: int | None = None
    resources: dict[str, float] = {}
    #: Full ids of the tasks that the engine holds.
    holding: list[int] = []


class Ping(Struct, tag="ping", omit_defaults=True):
    """A heartbeat of a client, of a nanny for all of its engines, or of an engine without a nanny."""

    received: int = 0


class Bye(Struct, tag="bye", omit_defaults=True):
    """The peer ends its session. The unread results of a client are dropped; an engine has stopped."""

    #: Cancel the client's unfinished tasks.
    cancel: bool = False
    reason: str = ""


# ---- client to scheduler --------------------------------------------------------------------------------------------


class Submit(Struct, tag="submit", omit_defaults=True):
    """Submits tasks; their ids ascend within a session."""

    tasks: list[Call]
    #: By digest, the functions of these tasks that this session has not sent yet.
    functions: dict[bytes, bytes] = {}
    #: Digests of functions that no later task of this session needs.
    drop: list[bytes] = []
    received: int = 0


class Cancel(Struct, tag="cancel", omit_defaults=True):
    """Cancels tasks, given by counter (the sender's own) or by full id."""

    tasks: list[int]


class Query(Struct, tag="query", omit_defaults=True):
    """Asks for a view of the scheduler; answered by a `Reply` with the same `request`."""

    request: int
    #: "status", "engines", "explain" or "story"; the last two need `task`.
    what: str
    #: Ids of other fronts are strings.
    task: int | str = 0


class Watch(Struct, tag="watch", omit_defaults=True):
    """Begins or ends a subscription to `Events` (R28)."""

    on: bool = True


class Stop(Struct, tag="stop", omit_defaults=True):
    """Shuts the scheduler down, like SIGTERM (R29)."""

    reason: str = ""


# ---- engine and nanny to scheduler ----------------------------------------------------------------------------------


class Finished(Struct, tag="finished", omit_defaults=True):
    """Results of an engine, in order; each counts one in `acked`."""

    results: list[TaskResult]


class Recalled(Struct, tag="recalled", omit_defaults=True):
    """The answer to `Recall`."""

    #: Tasks that had not begun and that the engine gives back.
    given: list[int] = []
    #: Tasks that had begun, or ended, already.
    kept: list[int] = []


class Draining(Struct, tag="draining", omit_defaults=True):
    """The engine ends after the tasks that it runs; the scheduler recalls those that have not begun (R29)."""

    reason: str = ""


class WorkerDied(Struct, tag="died", omit_defaults=True):
    """A nanny's report that a worker died."""

    #: The engine's session number; 0: the nanny did not know it, and `pid` identifies the worker.
    engine: int
    reason: str = ""
    #: Full ids of the tasks that ran; None: unknown.
    running: list[int] | None = None
    pid: int = 0


# ---- scheduler to any peer ------------------------------------------------------------------------------------------


class Welcome(Struct, tag="welcome", omit_defaults=True):
    """The answer to `Hello`. `session`, `secret` and `scheduler` resume the session later."""

    #: For an engine also its engine number.
    session: int
    secret: str
    #: The id of this scheduler instance.
    scheduler: str
    version: int = VERSION
    #: The session was known, or is renewed.
    resumed: bool = False
    #: The session had been forgotten because nothing was left of it, and begins again under its number: functions must
    #: be sent again, and accepted tasks that have not ended are lost.
    renewed: bool = False
    #: The client's accepted submissions; for an engine the count of its results, as in `acked`.
    accepted: int = 0
    #: The number of submissions that may be unacknowledged.
    credit: int = 0
    #: The bytes of submissions that may be unacknowledged: bodies, frames, and TASK_BYTES for each call. The last call
    #: may exceed them; 0 means none, None means any number. `Accepted` changes it.
    credit_bytes: int | None = None
    #: The longest time between two `Ping`s of the peer.
    heartbeat_s: float = 2.0
    max_message_bytes: int = 0
    #: The Python versions of the engines.
    pythons: list[str] = []
    #: The number of engines.
    engines: int = 0
    #: Engines that were started together with the scheduler and have not joined yet: a client waits for them, as
    #: `Engines` counts them, before its first submission.
    starting: int = 0


class Error(Struct, tag="error", omit_defaults=True):
    """A message of the peer is malformed or not allowed.

    `kind` is as in `WireError`; after "unknown_peer" the peer sends its `Hello` again.
    """

    kind: str
    message: str


class Pong(Struct, tag="pong", omit_defaults=True):
    """The answer to `Ping`. `accepted` is as in `Accepted`."""

    accepted: int = 0


class Closing(Struct, tag="closing", omit_defaults=True):
    """The scheduler shuts down and accepts nothing more. Running tasks end, and clients still receive results."""

    reason: str = ""


# ---- scheduler to client --------------------------------------------------------------------------------------------


class Results(Struct, tag="results", omit_defaults=True):
    """Ends of tasks, by full id."""

    #: Counts these messages of the session, from 1.
    seq: int
    results: list[TaskResult]
    accepted: int = 0


class Accepted(Struct, tag="accepted", omit_defaults=True):
    """Returns credit."""

    #: The count of this session's submissions that were accepted or refused; also in `Results` and `Pong`.
    accepted: int
    #: The bytes of submissions that may be unacknowledged from now on, as in `Welcome`; None: as before.
    credit_bytes: int | None = None
    #: The name of the setting that limits `credit_bytes`.
    limit: str = ""


class Refused(Struct, tag="refused", omit_defaults=True):
    """Refuses a submission, which counts in `accepted`."""

    id: int
    reason: str


class Reply(Struct, tag="reply", omit_defaults=True):
    """The answer to a `Query`: plain data, or `error`."""

    request: int
    data: Any = None
    error: str = ""


class Engines(Struct, tag="engines", omit_defaults=True):
    """The Python versions and the number of the engines, sent when they change."""

    pythons: list[str] = []
    count: int = 0


class MonitorEvent(Struct, omit_defaults=True):
    """One event for monitors, as in `core.effects.Publish`."""

    what: str
    task: int | None = None
    engine: int | None = None
    client: int | None = None
    outcome: str | None = None


class Events(Struct, tag="events", omit_defaults=True):
    """Events, for clients that have sent `Watch`."""

    events: list[MonitorEvent]


# ---- scheduler to engine --------------------------------------------------------------------------------------------


class ClientEnvironment(Struct, omit_defaults=True):
    """The working directory and the sys.path of a client, which its tasks get where these paths exist."""

    cwd: str = ""
    path: list[str] = []


class Assign(Struct, tag="assign", omit_defaults=True):
    """Assigns tasks, to be run in this order."""

    tasks: list[Call]
    #: By digest, the functions of these tasks that the engine does not have.
    functions: dict[bytes, bytes] = {}
    #: Digests of functions that no later task needs.
    drop: list[bytes] = []
    #: By client session, the environments that the engine does not have.
    places: dict[int, ClientEnvironment] = {}
    #: The count of this engine's results that have arrived.
    acked: int = 0


class Recall(Struct, tag="recall", omit_defaults=True):
    """Asks for these tasks back if they have not begun. `acked` is as in `Assign`."""

    tasks: list[int]
    acked: int = 0


class Acked(Struct, tag="acked", omit_defaults=True):
    """The count of results that have arrived, when nothing else is sent; as in `Assign`."""

    acked: int


FromClient: TypeAlias = Hello | Ping | Bye | Submit | Cancel | Query | Watch | Stop
FromPeer: TypeAlias = (
    Hello | Ping | Bye | Submit | Cancel | Query | Watch | Stop | Finished | Recalled | Draining | WorkerDied
)
ToClient: TypeAlias = Welcome | Error | Pong | Closing | Results | Accepted | Refused | Reply | Engines | Events
ToEngine: TypeAlias = Welcome | Error | Pong | Closing | Assign | Recall | Acked
Message: TypeAlias = FromPeer | ToClient | ToEngine

_encoder = msgspec.msgpack.Encoder()
_from_peer: msgspec.msgpack.Decoder[FromPeer] = msgspec.msgpack.Decoder(FromPeer)
_to_client: msgspec.msgpack.Decoder[ToClient] = msgspec.msgpack.Decoder(ToClient)
_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
#: Encode a message as its first frame.
encode = _encoder.encode


class _Tag(Struct):
    type: str = ""


_tag = msgspec.msgpack.Decoder(_Tag)


def _tags_of(union: object) -> frozenset[str]:
    return frozenset(kind.__struct_config__.tag for kind in get_args(union))


_FROM_PEER, _TO_CLIENT, _TO_ENGINE = _tags_of(FromPeer), _tags_of(ToClient), _tags_of(ToEngine)


def decode_from_peer(data: Frame) -> FromPeer:
    """Decode what any peer sends to the scheduler.

    :raises WireError: the message is malformed, or its type unknown; `kind` says which.
    """
    return _decode(_from_peer, data, _FROM_PEER)


def decode_to_client(data: Frame) -> ToClient:
    """Decode what the scheduler sends to a client; raises as `decode_from_peer`."""
    return _decode(_to_client, data, _TO_CLIENT)


def decode_to_engine(data: Frame) -> ToEngine:
    """Decode what the scheduler sends to an engine or a nanny; raises as `decode_from_peer`."""
    return _decode(_to_engine, data, _TO_ENGINE)


def _decode(decoder: msgspec.msgpack.Decoder[T], data: Frame, known_tags: frozenset[str]) -> T:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        problem = str(error)
    try:
        tag = _tag.decode(data).type
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise WireError(f"not a message: {problem}", "malformed") from None
    if tag in known_tags:
        raise WireError(f"malformed {tag!r} message: {problem}", "malformed")
    raise WireError(f"unknown message type {tag!r}", "unknown_type")


# ---- frames ---------------------------------------------------------------------------------------------------------


class FramedRecord(Struct, gc=False):
    """A record with its frames: the form in which the core holds a payload or a result that has frames."""

    record: Call | TaskResult
    frames: tuple[Frame, ...]


def attach(records: Sequence[Call | TaskResult], frames: Sequence[Frame]) -> list[Call | TaskResult | FramedRecord]:
    """Pair the records of a message with their frames; records without frames are returned as they are.

    :raises WireError: the records name another number of frames, or a negative one.
    """
    counts = [record.frames for record in records]
    if any(counts) and min(counts) < 0:  # which the sum might hide
        raise WireError(f"a record names {min(counts)} frames")
    if sum(counts) != len(frames):
        raise WireError(f"{len(frames)} frames came with a message whose records name {sum(counts)}")
    if not frames:
        return list(records)
    framed: list[Call | TaskResult | FramedRecord] = []
    at = 0
    for record in records:
        if record.frames:
            framed.append(FramedRecord(record, tuple(frames[at : at + record.frames])))
            at += record.frames
        else:
            framed.append(record)
    return framed
