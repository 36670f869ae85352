"""The command line.

    app.py            the commands together, and the report of errors
    run.py            run
    serve.py          serve, up
    engine.py         engine
    ipcontroller.py   ipcontroller
    status.py         status
    control.py        explain, cancel, stop
    bench.py          bench; its measurements are in benchmarks/
    options.py        options that several commands share
    settings.py       the scheduler's settings as options
    local_cluster.py  a scheduler and engines in this process
    signals.py        signals and the lifeline, which end a command
    admin_client.py   a client for the commands that query or control a running scheduler
    log_setup.py      the output of log records
    tables.py         tables on standard output

A command's module imports only typer at the top, and everything else inside the command, so that `--help` and shell
completion take no noticeable time.
"""

from __future__ import annotations
