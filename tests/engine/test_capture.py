"""Captured output: what belongs to a task, and how much of it is kept."""

from __future__ import annotations

import sys

import pytest

from trio_sched.engine.capture import LIMIT, CapturedOutput, TaskStream, _BoundedText
from trio_sched.wire.native import TaskResult


def test_the_middle_of_long_output_is_cut_once_and_counted() -> None:
    text = _BoundedText()
    text.add("a" * LIMIT)
    assert text.take() == "a" * LIMIT
    for letter in "abcdefg":
        text.add(letter * (LIMIT // 2))
    half = LIMIT // 2
    assert text.take() == "a" * half + f"\n[... {5 * half} characters cut ...]\n" + "g" * half
    assert text.take() == ""


def test_output_outside_a_task_goes_to_the_real_stream(capsys: pytest.CaptureFixture[str]) -> None:
    output = CapturedOutput()
    stream = TaskStream(sys.stdout, 0, lambda: output)
    print("before", file=stream)
    output.begin()
    print("during", file=stream)
    assert stream.buffer.write(b"\xff") == 1
    result = TaskResult(1)
    output.end(result)
    print("after", file=stream)
    with pytest.raises(TypeError, match="must be str, not bytes"):
        stream.write(b"x")  # type: ignore[arg-type]
    stream.close()
    assert (stream.writable(), stream.isatty(), stream.encoding) == (True, False, "utf-8")
    assert capsys.readouterr().out == "before\nafter\n"
    assert (result.stdout, result.stderr) == ("during\n\N{REPLACEMENT CHARACTER}", "")
