"""Start a scheduler and serve a page for its WebSocket: `python examples/web/launch.py` prints the page's address.

Only pages of this origin may connect. The token is in the fragment of the address (behind the #), which browsers do not
send to servers.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlencode

HERE = Path(__file__).resolve().parent


def start_scheduler(name: str, origin: str, engines: int) -> tuple[subprocess.Popen[str], str, str]:
    """Start a scheduler; return its process, the address of its WebSocket, and the token."""
    command = [sys.executable, "-m", "trio_sched", "up", "--name", name, "-n", str(engines), "--lifeline"]
    command += ["--websocket-port", "0", "--websocket-origin", origin, "--log-level", "warning"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    if not process.stdout.readline():  # the line that a started scheduler prints
        sys.exit(process.wait())
    from trio_sched.transport.connection_info import find_connection

    connection = find_connection(name, "client")
    return process, connection.websocket, connection.token


def main() -> int:
    parser = argparse.ArgumentParser(description="Start a scheduler and serve a page for it.")
    parser.add_argument("--port", type=int, default=0, help="port of the page; default: any")
    parser.add_argument("--engines", type=int, default=2, help="number of engines")
    parser.add_argument("--demo", action="store_true", help="run demo.mjs with node and exit with its code")
    given = parser.parse_args()

    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(HERE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", given.port), handler) as server:
        page = f"http://127.0.0.1:{server.server_port}"
        process, url, token = start_scheduler(f"web-{os.getpid()}", page, given.engines)
        try:
            if given.demo:
                command = ["node", "--experimental-websocket", str(HERE / "demo.mjs"), url, token]
                return subprocess.run(command, stdin=subprocess.DEVNULL).returncode
            print(
                json.dumps({"websocket": url, "page": f"{page}/#{urlencode({'url': url, 'token': token})}"}), flush=True
            )
            server.serve_forever()
        except KeyboardInterrupt:
            pass
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
