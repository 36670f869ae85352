"""Draw the pictures of the documentation: `python docs/draw.py` writes docs/states.svg and docs/life.svg.

The states and their transitions come from the table in the code (trio_sched/core/task.py), so the picture cannot say
anything else; a test draws anew and compares. Only where the boxes stand is decided here.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from trio_sched.core.states import TRANSITIONS, State

HERE = Path(__file__).parent
HEAD = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
    'font-family="system-ui, sans-serif" font-size="13">\n'
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M0 0 L8 4 L0 8 z" fill="#567"/></marker></defs>\n'
    '<rect width="100%" height="100%" fill="#fff"/>\n'
)


class Box(NamedTuple):
    """A labelled box; `x` and `y` are its middle."""

    x: float
    y: float
    text: str
    width: float = 110
    height: float = 34
    fill: str = "#eef4fb"

    def svg(self) -> str:
        lines = self.text.split("\n")
        top = self.y - 8 * (len(lines) - 1) + 4.5
        words = "".join(
            f'<text x="{self.x:g}" y="{top + 16 * row:g}" text-anchor="middle" '
            f'fill="{"#123" if row == 0 else "#567"}" font-size="{13 if row == 0 else 11}">{line}</text>'
            for row, line in enumerate(lines)
        )
        return (
            f'<rect x="{self.x - self.width / 2:g}" y="{self.y - self.height / 2:g}" width="{self.width:g}" '
            f'height="{self.height:g}" rx="7" fill="{self.fill}" stroke="#567"/>{words}\n'
        )

    def border(self, x: float, y: float) -> tuple[float, float]:
        """Where the line from the middle towards (x, y) leaves the box."""
        dx, dy = x - self.x, y - self.y
        scale = min(self.width / 2 / abs(dx) if dx else math.inf, self.height / 2 / abs(dy) if dy else math.inf)
        return self.x + dx * scale, self.y + dy * scale


def arrow(start: Box, end: Box, bend: float = 0.0, text: str = "") -> str:
    """A curve from one box to another; `bend` pushes its middle to the left of its direction, in pixels."""
    dx, dy = end.x - start.x, end.y - start.y
    length = math.hypot(dx, dy) or 1.0
    middle_x = (start.x + end.x) / 2 + 2 * bend * dy / length
    middle_y = (start.y + end.y) / 2 - 2 * bend * dx / length
    x1, y1 = start.border(middle_x, middle_y)
    x2, y2 = end.border(middle_x, middle_y)
    label = ""
    if text:
        label_x, label_y = (x1 + 2 * middle_x + x2) / 4, (y1 + 2 * middle_y + y2) / 4 - 6
        label = (
            f'<text x="{label_x:.1f}" y="{label_y + 9:.1f}" text-anchor="middle" font-size="11" fill="#345" '
            f'stroke="#fff" stroke-width="5" paint-order="stroke">{text}</text>'
        )
    return (
        f'<path d="M{x1:.1f} {y1:.1f} Q{middle_x:.1f} {middle_y:.1f} {x2:.1f} {y2:.1f}" fill="none" stroke="#567" '
        f'marker-end="url(#tip)"/>{label}\n'
    )


# ---- the states of a task ------------------------------------------------------------------------------------------

PLACES = {
    State.WAITING: (90, 110),
    State.DELAYED: (90, 370),
    State.READY: (90, 240),
    State.ASSIGNED: (340, 240),
    State.RECALLING: (340, 110),
    State.CANCELLING: (340, 370),
    State.ENDED: (600, 240),
}
BENDS = {
    (State.WAITING, State.ENDED): 110.0,
    (State.DELAYED, State.ENDED): -110.0,
    (State.READY, State.ENDED): 42.0,
    (State.RECALLING, State.CANCELLING): 80.0,
    (State.RECALLING, State.DELAYED): 22.0,
}


def states_svg() -> str:
    """The states, an arrow for each transition of the table."""
    boxes = {
        state: Box(*PLACES[state], state.value, fill="#fbeeee" if not TRANSITIONS[state] else "#eef4fb")
        for state in State
    }
    arrows = [
        arrow(boxes[start], boxes[end], BENDS.get((start, end), 12.0 if start in TRANSITIONS[end] else 0.0))
        for start in State
        for end in sorted(TRANSITIONS[start], key=list(State).index)
    ]
    return (
        HEAD.format(width=690, height=480) + "".join(arrows) + "".join(box.svg() for box in boxes.values()) + "</svg>\n"
    )


def states_table() -> str:
    """The same as a table in Markdown."""
    rows = ["| from | to |", "| --- | --- |"]
    for start in State:
        ends = [end.value for end in State if end in TRANSITIONS[start]]
        rows.append(f"| `{start.value}` | {', '.join(f'`{end}`' for end in ends) or 'nothing: it is over'} |")
    return "\n".join(rows)


# ---- the settings ----------------------------------------------------------------------------------------------------


def settings_table() -> str:
    """The settings as a table in Markdown: those of the command line, with the defaults of `Config`."""
    from trio_sched.cli.settings import SETTINGS
    from trio_sched.server.config import Config

    usual, rows = Config(), ["| setting | option | default | what it is |", "| --- | --- | --- | --- |"]
    for setting in SETTINGS:
        default = getattr(usual, setting.name)
        shown = f"`{default}`" if default not in (None, "", ()) else ""
        what = setting.help.partition(" [")[0]
        rows.append(f"| `{setting.name}` | `{setting.option}` | {shown} | {what} |")
    return "\n".join(rows)


# ---- the life of one task ------------------------------------------------------------------------------------------


def life_svg() -> str:
    """From the client's `submit` through the scheduler to the engine, and back."""
    client = Box(85, 250, "client\nsubmit() … result()", 140, 50, "#eefbf0")
    engine = Box(915, 250, "engine\nruns the call", 140, 50, "#eefbf0")
    intake = Box(305, 140, "intake\nbytes to TaskSubmitted", 170, 50)
    results = Box(695, 140, "results\nbytes to TaskFinished", 170, 50)
    notes = Box(695, 70, "notifications, auditor\nlost engines, time", 170, 50)
    actor = Box(500, 140, "actor\none batch, one turn", 150, 50, "#fdf6e3")
    core = Box(500, 250, "core.Scheduler\nhandle(event, now) -> effects", 210, 50, "#fdf6e3")
    outbox = Box(500, 355, "outbox\nper-peer queues", 150, 50)
    frame = (
        '<rect x="190" y="20" width="620" height="375" rx="10" fill="none" stroke="#9ab" stroke-dasharray="5 4"/>'
        '<text x="206" y="42" fill="#567" font-size="12">the scheduler: one process, one Trio nursery</text>\n'
    )
    arrows = [
        arrow(client, intake, text="Submit"),
        arrow(intake, actor),
        arrow(results, actor),
        arrow(notes, actor),
        arrow(actor, core, 14, "events"),
        arrow(core, actor, 14),
        arrow(core, outbox, 0, "effects"),
        arrow(outbox, engine, -30, "Assign"),
        arrow(outbox, client, 30, "Results"),
        arrow(engine, results, text="Finished"),
    ]
    boxes = [client, engine, intake, results, notes, actor, core, outbox]
    return HEAD.format(width=1000, height=410) + frame + "".join(arrows) + "".join(b.svg() for b in boxes) + "</svg>\n"


PICTURES = {"states.svg": states_svg, "life.svg": life_svg}
TABLES = {"states.md": states_table, "configuration.md": settings_table}
START, END = "<!-- drawn by docs/draw.py -->\n", "\n<!-- /drawn -->"


def split(page: str) -> tuple[str, str, str]:
    """A page in three: what is before the drawn table, the table, and what is behind it."""
    before, _, rest = page.partition(START)
    drawn, _, after = rest.partition(END)
    return before + START, drawn, END + after


if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (HERE / name).write_text(draw(), encoding="utf-8")
    for name, table in TABLES.items():
        before, _, after = split((HERE / name).read_text(encoding="utf-8"))
        (HERE / name).write_text(before + table() + after, encoding="utf-8")
