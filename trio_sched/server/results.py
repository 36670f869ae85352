"""Engine results: turns the messages of engines into events, in the order in which each engine sent them."""

from __future__ import annotations

from collections.abc import Sequence

from trio_sched.server.events import (
    AnswersReceived,
    DrainReceived,
    RecallAnswersReceived,
)
from trio_sched.server.ingress import ENGINES, Ingress
from trio_sched.server.peer_connection import PeerConnection
from trio_sched.server.reader import Reader, Validator, read_bye, read_ping
from trio_sched.wire.native import Bye, Draining, Finished, Frame, Hello, Ping, Recalled, attach


class ResultsReader(Reader):
    """Reads what engines sent."""

    who = "an engine"

    def __init__(self, ingress: Ingress, read_hello: Validator) -> None:
        super().__init__(
            ingress,
            ENGINES,
            {
                Finished: _read_answers,
                Recalled: _read_recall_answers,
                Draining: _read_draining,
                Ping: read_ping,
                Bye: read_bye,
                Hello: read_hello,
            },
        )


def _read_answers(
    connection: PeerConnection, now: float, message: Finished, frames: Sequence[Frame]
) -> AnswersReceived:
    answers = message.results
    frame_bytes = sum([len(frame) for frame in frames]) if frames else 0
    return AnswersReceived(connection, now, answers, attach(answers, frames), frame_bytes)


def _read_recall_answers(
    connection: PeerConnection, now: float, message: Recalled, _frames: Sequence[Frame]
) -> RecallAnswersReceived:
    return RecallAnswersReceived(connection, now, message.given, message.kept)


def _read_draining(
    connection: PeerConnection, now: float, _message: Draining, _frames: Sequence[Frame]
) -> DrainReceived:
    return DrainReceived(connection, now)
