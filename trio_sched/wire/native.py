"""The native protocol, version 1: one message is a msgpack map and the frames that follow it.

Peers are *clients*, *engines* (one a worker) and *nannies* (one a machine); the scheduler answers. Every connection
begins with `Hello`, answered by `Welcome` or `Error`. Each message is a tagged struct whose tag is the key "type";
keys that are not known are ignored, missing ones take their defaults, so that versions can grow. A WebSocket client
speaks the same messages as JSON text or msgpack binary.

Frames. A pickled call or value is a *body* and any number of out-of-band buffers (pickle protocol 5). A small body
travels inside its record. `frames` tells how many of the frames behind the message belong to the record, in the order
of the records; when `body` is empty and `frames` is not 0, the first of them is the body (it was large). Where there
are no frames (WebSocket), a body travels inside its record whatever its size, and its buffers in `attached`. A call
with `inputs` counts their frames in its own `frames`: first those of the call itself, then those of each input in
order (whose `frames` is its own count).

Reliability. Submissions are answered by number: `accepted` counts all of this session's submissions that the scheduler
has taken or refused, in the order sent, which returns credit and tells a client what it need not send again. Results
to a client carry `seq`; the client tells the highest one it has (`received`), and after a reconnection the scheduler
sends again what lies behind it. An engine keeps each result until `acked` (a count of results in the order sent)
covers it, and on a reconnection sends the others again (after the Welcome, whose `accepted` is that count); its Hello
names the tasks it holds, those with such a result among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import Struct

from trio_sched.core.events import Outcome
from trio_sched.core.ids import MAX_COUNTER
from trio_sched.errors import WireError
from trio_sched.wire.decoding import decode, tags

VERSION = 1
INLINE_BYTES = 16 * 1024
"""Bodies up to this size travel inside the message."""
FUNCTION_DIGEST_BYTES = 16
TASK_BYTES = 512
"""What a call counts for in `credit_bytes`, beside its body and frames."""
NAMED_BYTES = 64
"""What each task or engine counts for that the options of a call name."""
COUNTER_MASK = MAX_COUNTER

Frame: TypeAlias = bytes | bytearray | memoryview


def sendable(text: str) -> str:
    """As text that can be sent: what UTF-8 has no form for, such as the odd bytes of a file name, as escapes."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


class Options(Struct, omit_defaults=True):
    """What a submission asks for beside its call; see `core.events.TaskSpec`. Task ids may be counters of the sender's
    own.
    """

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
    """What a call counts for in `credit_bytes` because of its options: `NAMED_BYTES` for each task, engine or resource
    that they name, and the label. 0 if that is less than `TASK_BYTES`, which cover it."""
    named = len(options.after) + len(options.follow) + len(options.inputs) + len(options.resources)
    if options.targets is not None:
        named += len(options.targets)
    size = NAMED_BYTES * named + len(options.label)
    return size if size > TASK_BYTES else 0


class RemoteError(Struct, omit_defaults=True):
    """An exception of the remote side in words, for peers that cannot unpickle it and for logs."""

    name: str
    message: str = ""
    traceback: str = ""


class Call(Struct, omit_defaults=True, gc=False):
    """A call on its way to an engine: what a client submits, and what an engine is given.

    Either `fn`, the digest of a pickled function, with `body` the pickled (args, kwargs); or `call`, "module:name",
    with `args` and `kwargs` plain data. `attempt` and the full id are the scheduler's; `inputs` the results that the
    body refers to (R9).
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
    attached: list[bytes] | None = None
    """Its frames, on connections without frames (WebSocket)."""


class Value(Struct, omit_defaults=True, gc=False):
    """The result of a task, as an input of another: codec and frames as in `TaskEnd`."""

    body: bytes = b""
    frames: int = 0
    codec: Literal["pickle", "msgpack"] = "pickle"


class TaskEnd(Struct, omit_defaults=True, gc=False):
    """How a task ended: what an engine answers (`outcome` "ok", "error" or "unmet"), and what its client is told.

    `body` is the pickled value, or with outcome "error" the pickled exception (empty if it could not be pickled:
    `error` still tells). `codec` "msgpack": the body is plain data (calls by name). `value` is that data, on JSON
    connections only. `engine` is its number, -1 if it never ran. `took_s` is the time the call itself ran.
    """

    id: int
    outcome: Outcome | Literal["unmet"] = "ok"
    body: bytes = b""
    frames: int = 0
    codec: Literal["pickle", "msgpack"] = "pickle"
    value: Any = None
    error: RemoteError | None = None
    reason: str = ""
    engine: int = -1
    attempt: int = 0
    stdout: str = ""
    stderr: str = ""
    took_s: float = 0.0
    attached: list[bytes] | None = None
    """Its frames, on connections without frames (WebSocket)."""


# ---- any peer to the scheduler --------------------------------------------------------------------------------------


class Hello(Struct, tag="hello", omit_defaults=True):
    """The first message. `session` and `secret` resume a session; `received` is the client's highest `seq` of Results.

    `token` is the role's token from the connection file: the proof that the peer may have this role. `nanny` is the
    nanny's session (engines), so that the nanny's beats and its report of a death count for the engine. `path` is
    sys.path, `cwd` the working directory. `recalling` etc. are not needed: `holding` names what the engine has (full
    ids). `cancel_on_leave`: the client's tasks end with it.
    """

    role: Literal["client", "engine", "nanny"]
    version: int = VERSION
    token: str = ""
    session: int = 0
    secret: str = ""
    scheduler: str = ""
    """The scheduler instance that the resumed session belongs to."""
    name: str = ""
    host: str = ""
    pid: int = 0
    python: str = ""
    # clients
    received: int = 0
    accepted: int = -1
    """Its submissions that were accepted, as far as it knows. A client that tells can go on after the scheduler forgot
    its session because nothing of it was left (`Welcome.renewed`); -1: it cannot."""
    admin: bool = False
    """It asks and orders (Query, Watch, Cancel, Stop) but submits nothing, and is admitted when there are as many
    clients as there may be."""
    weight: float = 1.0
    cwd: str = ""
    path: list[str] = []
    cancel_on_leave: bool = False
    # engines
    nanny: int = 0
    slots: int = 1
    hwm: int | None = None
    resources: dict[str, float] = {}
    holding: list[int] = []


class Ping(Struct, tag="ping", omit_defaults=True):
    """A heartbeat. From a client or a nanny; a nanny's counts for all of its engines. An engine without a nanny sends
    its own.
    """

    received: int = 0


class Bye(Struct, tag="bye", omit_defaults=True):
    """The peer leaves for good. A client's results are dropped; `cancel` its unfinished tasks too. An engine has
    stopped.
    """

    cancel: bool = False
    reason: str = ""


# ---- client to scheduler --------------------------------------------------------------------------------------------


class Submit(Struct, tag="submit", omit_defaults=True):
    """Tasks, ids ascending within a session. `functions`: those named by digest that the scheduler has not had from
    this session; `drop`: those that no later task of this session will name.
    """

    tasks: list[Call]
    functions: dict[bytes, bytes] = {}
    drop: list[bytes] = []
    received: int = 0


class Cancel(Struct, tag="cancel", omit_defaults=True):
    """Cancel these tasks: own ones by counter, any by full id."""

    tasks: list[int]


class Query(Struct, tag="query", omit_defaults=True):
    """Ask for a view; answered by Reply with the same `request`. `what`: "status", "explain", "story" (with `task`),
    "engines". A task of another front has a text for its id.
    """

    request: int
    what: str
    task: int | str = 0


class Watch(Struct, tag="watch", omit_defaults=True):
    """Begin (or end) to be told what happens (R28): Events follow."""

    on: bool = True


class Stop(Struct, tag="stop", omit_defaults=True):
    """Shut the scheduler down as SIGTERM would (R29)."""

    reason: str = ""


# ---- engine and nanny to scheduler ----------------------------------------------------------------------------------


class Finished(Struct, tag="finished", omit_defaults=True):
    """Answers of an engine, in order; each counts one for `acked`."""

    results: list[TaskEnd]


class Recalled(Struct, tag="recalled", omit_defaults=True):
    """The answer to Recall: the tasks given back unbegun, and those that were begun (or ended) already."""

    given: list[int] = []
    kept: list[int] = []


class Draining(Struct, tag="draining", omit_defaults=True):
    """The engine was told to end and does so after the tasks that it runs: it takes nothing more, and what it has not
    begun is to be recalled (R29).
    """

    reason: str = ""


class Died(Struct, tag="died", omit_defaults=True):
    """A nanny saw a worker die. `running`: the full ids it was running, None if unknown."""

    engine: int
    """The engine's session number; 0: the worker died before the nanny learned it, so that `pid` must do."""
    reason: str = ""
    running: list[int] | None = None
    pid: int = 0


# ---- scheduler to any peer ------------------------------------------------------------------------------------------


class Welcome(Struct, tag="welcome", omit_defaults=True):
    """The answer to Hello. `session` (for an engine also its engine number) and `secret` resume it later; `scheduler`
    names this instance.

    `resumed`: the session was known. `renewed` (with it): it had been forgotten, for nothing of it was left, and begins
    again under its number: functions are to be sent again, and accepted tasks that have not ended are lost. `accepted`:
    its submissions so far; for an engine its results taken so far, as in `acked`. `credit`: submissions that may be
    under way unanswered. `heartbeat_s`: send a Ping at least this often. `pythons`: versions of the engines now here,
    `engines` their number. `starting`: engines that were started with the scheduler and have not joined yet; a client
    waits for them, as Engines tells, before its first submission.
    """

    session: int
    secret: str
    scheduler: str
    version: int = VERSION
    resumed: bool = False
    renewed: bool = False
    accepted: int = 0
    credit: int = 0
    credit_bytes: int | None = None
    """How many bytes of submissions may be under way unanswered: bodies and frames, and TASK_BYTES for each call. The
    last call may exceed them, and 0 means none. None: any number. It changes: see Accepted."""
    heartbeat_s: float = 2.0
    max_message_bytes: int = 0
    pythons: list[str] = []
    engines: int = 0
    starting: int = 0


class Error(Struct, tag="error", omit_defaults=True):
    """Your message was not understood or not allowed. `kind` as in WireError; "unknown_peer": say Hello (again)."""

    kind: str
    message: str


class Pong(Struct, tag="pong", omit_defaults=True):
    """The answer to Ping."""

    accepted: int = 0


class Closing(Struct, tag="closing", omit_defaults=True):
    """The scheduler shuts down: it takes nothing more. Engines finish what runs, clients get what still comes."""

    reason: str = ""


# ---- scheduler to client --------------------------------------------------------------------------------------------


class Results(Struct, tag="results", omit_defaults=True):
    """Ends of tasks (ids are full ids). `seq` counts these messages of the session from 1."""

    seq: int
    results: list[TaskEnd]
    accepted: int = 0


class Accepted(Struct, tag="accepted", omit_defaults=True):
    """Credit returned; also inside Results and Pong. `credit_bytes`: from now on so many bytes of submissions may be
    under way unanswered, because `limit` (the name of a setting) allows no more; None: as before."""

    accepted: int
    credit_bytes: int | None = None
    limit: str = ""


class Refused(Struct, tag="refused", omit_defaults=True):
    """A submission was refused; it counts in `accepted`."""

    id: int
    reason: str


class Reply(Struct, tag="reply", omit_defaults=True):
    """The answer to a Query: plain data, or `error`."""

    request: int
    data: Any = None
    error: str = ""


class Engines(Struct, tag="engines", omit_defaults=True):
    """The Python versions and the number of the engines that are here, sent when they change."""

    pythons: list[str] = []
    count: int = 0


class Happened(Struct, omit_defaults=True):
    """One thing that happened, for monitors; see core.effects.Publish."""

    what: str
    task: int | None = None
    engine: int | None = None
    client: int | None = None
    outcome: str | None = None


class Events(Struct, tag="events", omit_defaults=True):
    """What happened, for those who asked to Watch."""

    events: list[Happened]


# ---- scheduler to engine --------------------------------------------------------------------------------------------


class Place(Struct, omit_defaults=True):
    """Where a client works: engines run its tasks in this directory and with this sys.path, where they exist."""

    cwd: str = ""
    path: list[str] = []


class Assign(Struct, tag="assign", omit_defaults=True):
    """Tasks to run, in order. `functions`: those this engine has not had; `drop`: those no later task will name;
    `places`: by client session, those that are new to it. `acked`: results of this engine taken so far."""

    tasks: list[Call]
    functions: dict[bytes, bytes] = {}
    drop: list[bytes] = []
    places: dict[int, Place] = {}
    acked: int = 0


class Recall(Struct, tag="recall", omit_defaults=True):
    """Give these tasks back if they have not begun."""

    tasks: list[int]
    acked: int = 0


class Acked(Struct, tag="acked", omit_defaults=True):
    """Results taken so far, when nothing else is sent."""

    acked: int


FromClient: TypeAlias = Hello | Ping | Bye | Submit | Cancel | Query | Watch | Stop
FromEngine: TypeAlias = Hello | Ping | Bye | Finished | Recalled | Draining
FromNanny: TypeAlias = Hello | Ping | Bye | Died
FromPeer: TypeAlias = (
    Hello | Ping | Bye | Submit | Cancel | Query | Watch | Stop | Finished | Recalled | Draining | Died
)
ToClient: TypeAlias = Welcome | Error | Pong | Closing | Results | Accepted | Refused | Reply | Engines | Events
ToEngine: TypeAlias = Welcome | Error | Pong | Closing | Assign | Recall | Acked
Message: TypeAlias = FromPeer | ToClient | ToEngine

_encoder = msgspec.msgpack.Encoder()
_from_peer = msgspec.msgpack.Decoder(FromPeer)
_to_client = msgspec.msgpack.Decoder(ToClient)
_to_engine = msgspec.msgpack.Decoder(ToEngine)
encode = _encoder.encode
"""Message -> its first frame."""


_FROM_PEER = tags(Hello, Ping, Bye, Submit, Cancel, Query, Watch, Stop, Finished, Recalled, Died)
_TO_CLIENT = tags(Welcome, Error, Pong, Closing, Results, Accepted, Refused, Reply, Engines, Events)
_TO_ENGINE = tags(Welcome, Error, Pong, Closing, Assign, Recall, Acked)


def decode_from_peer(data: Frame) -> FromPeer:
    """What any peer sends to the scheduler. Raises WireError."""
    return decode(_from_peer, data, _FROM_PEER)  # type: ignore[no-any-return]  # the decoder is typed by its union


def decode_to_client(data: Frame) -> ToClient:
    """What the scheduler sends to a client. Raises WireError."""
    return decode(_to_client, data, _TO_CLIENT)  # type: ignore[no-any-return]


def decode_to_engine(data: Frame) -> ToEngine:
    """What the scheduler sends to an engine or a nanny. Raises WireError."""
    return decode(_to_engine, data, _TO_ENGINE)  # type: ignore[no-any-return]


class Attached(Struct, gc=False):
    """A record with the frames that came with it: what the core holds as payload or result when there are any."""

    record: Call | TaskEnd
    frames: tuple[Frame, ...]


def attach(records: Sequence[Call | TaskEnd], frames: Sequence[Frame]) -> list[Call | TaskEnd | Attached]:
    """Deal the frames behind a message out to its records. Raises WireError when the counts disagree."""
    counts = [record.frames for record in records]
    if any(counts) and min(counts) < 0:  # others might make up for it
        raise WireError(f"a record names {min(counts)} frames")
    if sum(counts) != len(frames):
        raise WireError(f"{len(frames)} frames came with a message whose records name {sum(counts)}")
    if not frames:
        return list(records)
    dealt: list[Call | TaskEnd | Attached] = []
    at = 0
    for record in records:
        if record.frames:
            dealt.append(Attached(record, tuple(frames[at : at + record.frames])))
            at += record.frames
        else:
            dealt.append(record)
    return dealt
