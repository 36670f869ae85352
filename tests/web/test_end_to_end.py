"""Calls from a WebSocket to a real engine: a Python client and, if node is installed, its WebSocket."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from functools import partial
from typing import Any

import msgspec
import numpy
import pytest
import trio

from trio_sched.engine.nanny import run_nanny
from trio_sched.wire import native, payload

SCRIPT = """
const socket = new WebSocket(process.argv[1]);
const say = (message) => socket.send(JSON.stringify(message));
socket.onopen = () => {
  say({type: "hello", role: "client"});
  say({type: "submit", tasks: [{id: 1, call: "math:hypot", args: [3, 4]}]});
};
socket.onmessage = (event) => {
  const message = JSON.parse(event.data);
  if (message.type !== "results") return;
  console.log(JSON.stringify(message.results[0]));
  say({type: "bye"});
};
socket.onclose = (event) => { console.log(event.code, event.reason); process.exit(0); };
"""


def by_name(number: int, call: str, *args: Any, **options: Any) -> dict[str, Any]:
    return {"id": number, "call": call, "args": list(args), "options": options}


def test_calls_by_name_return_values_and_errors(run: Any, lab: Any) -> None:
    async def main() -> None:
        async with lab() as it, it.bearer() as page:
            await it.nursery.start(partial(run_nanny, it.running.engine_connection, workers=1))
            await page.join()
            await page.submit(
                by_name(1, "math:hypot", 3, 4),
                by_name(2, "math:sqrt", -1),
                by_name(3, "nowhere.at.all:f"),
                by_name(4, "builtins:complex", 1, 2),
                by_name(5, "builtins:dict", [["a", [1, None, "ü"]]]),
                by_name(6, "builtins:print", "printed", after=[5]),
            )
            results = {end["id"] & 0xFFFF_FFFF: end for end in await page.results(6)}
            assert results[1]["value"] == 5.0
            assert (results[2]["outcome"], results[2]["error"]["name"]) == ("error", "ValueError")
            assert (results[3]["outcome"], "nowhere" in results[3]["error"]["message"]) == ("error", True)
            assert payload.loads(base64.b64decode(results[4]["body"])) == 1 + 2j, "not plain data: as bytes"
            assert results[5]["value"] == {"a": [1, None, "ü"]}
            assert (results[6].get("value"), results[6]["codec"]) == (None, "msgpack")
            assert results[6]["stdout"] == "printed\n"

    run(main)


def test_a_pickled_call_with_arrays_returns_its_result(run: Any, lab: Any) -> None:
    async def main() -> None:
        async with lab() as it, it.bearer() as page:
            await it.nursery.start(partial(run_nanny, it.running.engine_connection, workers=1))
            await page.join()
            given = numpy.arange(100_000.0)
            function = payload.dump_function(numpy.sqrt)
            body, buffers = payload.dumps(((given,), {}))
            call = native.Call(1, payload.digest(function), body, attached=[bytes(part) for part in buffers])
            submit = native.Submit([call], functions={call.fn: function})
            await page.connection.send_message(msgspec.json.encode(submit).decode())
            [end] = await page.results(1)
            result = msgspec.json.decode(json.dumps(end), type=native.TaskResult)
            assert result.attached, "large arrays travel out of band"
            assert numpy.array_equal(payload.loads(result.body, result.attached), numpy.sqrt(given))

    run(main)


def test_a_node_client_gets_a_result(run: Any, lab: Any) -> None:
    node = shutil.which("node")
    command = [node or "", "--experimental-websocket", "-e"]
    if not node or subprocess.run([*command, "new WebSocket"], capture_output=True).stderr.count(b"bad option"):
        pytest.skip("no node with a WebSocket")

    async def main() -> None:
        async with lab() as it:
            await it.nursery.start(partial(run_nanny, it.running.engine_connection, workers=1))
            done = await trio.run_process([*command, SCRIPT, f"{it.url}?token={it.token}"], capture_stdout=True)
            result, closed = done.stdout.decode().splitlines()
            assert json.loads(result)["value"] == 5
            assert closed == "1000 session closed"

    run(main)
