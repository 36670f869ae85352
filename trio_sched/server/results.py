"""Engine results: the messages of engines as events, in the order in which each engine sent them."""

from __future__ import annotations

from collections.abc import Sequence

from trio_sched.server.happenings import (
    AnswersReceived,
    DrainReceived,
    RecallAnswersReceived,
)
from trio_sched.server.hub import RESULTS, Hub
from trio_sched.server.links import Link
from trio_sched.server.reader import Reader, Validator, read_bye, read_ping
from trio_sched.wire.native import Bye, Draining, Finished, Frame, Hello, Ping, Recalled, attach


class Results(Reader):
    """Reads what engines sent."""

    who = "an engine"

    def __init__(self, hub: Hub, read_hello: Validator) -> None:
        super().__init__(
            hub,
            RESULTS,
            {
                Finished: _read_answers,
                Recalled: _read_recall_answers,
                Draining: _read_draining,
                Ping: read_ping,
                Bye: read_bye,
                Hello: read_hello,
            },
        )


def _read_answers(connection: Link, now: float, message: Finished, frames: Sequence[Frame]) -> AnswersReceived:
    answers = message.results
    frame_bytes = sum([len(frame) for frame in frames]) if frames else 0
    return AnswersReceived(connection, now, answers, attach(answers, frames), frame_bytes)


def _read_recall_answers(
    connection: Link, now: float, message: Recalled, _frames: Sequence[Frame]
) -> RecallAnswersReceived:
    return RecallAnswersReceived(connection, now, message.given, message.kept)


def _read_draining(connection: Link, now: float, _message: Draining, _frames: Sequence[Frame]) -> DrainReceived:
    return DrainReceived(connection, now)
