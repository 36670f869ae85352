"""The command line: one file per command.

A command's module imports nothing but typer at its top, and what it runs only inside the command, so that `--help`
and shell completion are instant. `app` puts the commands together and turns every error into one line and an exit
code; `settings` makes the scheduler's settings into options; `hosting` runs a scheduler and engines inside this
process; `asking` talks to a running one.
"""

from __future__ import annotations
