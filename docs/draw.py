"""Draw the pictures of the documentation: `python docs/draw.py` writes docs/states.svg and docs/life.svg.

The states, their transitions and the causes of the transitions come from the table in the code
(trio_sched/core/states.py); a test draws the pictures again and compares them. Only the positions are decided here.
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


def arrow(start: Box, end: Box, bend: float = 0.0, text: str = "", at: float = 0.5) -> tuple[str, str]:
    """A curve from one box to another, and its label.

    `bend` moves the middle to the left of the direction, in pixels. `at`: where on the curve the label is, from 0 to 1.
    """
    dx, dy = end.x - start.x, end.y - start.y
    length = math.hypot(dx, dy) or 1.0
    middle_x = (start.x + end.x) / 2 + 2 * bend * dy / length
    middle_y = (start.y + end.y) / 2 - 2 * bend * dx / length
    x1, y1 = start.border(middle_x, middle_y)
    x2, y2 = end.border(middle_x, middle_y)
    words = ""
    if text:
        weights = (1 - at) ** 2, 2 * at * (1 - at), at**2
        label_x = weights[0] * x1 + weights[1] * middle_x + weights[2] * x2
        label_y = weights[0] * y1 + weights[1] * middle_y + weights[2] * y2 - 6
        words = (
            f'<text x="{label_x:.1f}" y="{label_y + 9:.1f}" text-anchor="middle" font-size="11" fill="#345" '
            f'stroke="#fff" stroke-width="5" paint-order="stroke">{text}</text>'
        )
    return (
        f'<path d="M{x1:.1f} {y1:.1f} Q{middle_x:.1f} {middle_y:.1f} {x2:.1f} {y2:.1f}" fill="none" stroke="#567" '
        f'marker-end="url(#tip)"/>',
        words,
    )


# ---- the states of a task ------------------------------------------------------------------------------------------

PLACES = {
    State.WAITING: (190, 130),
    State.DELAYED: (190, 610),
    State.READY: (190, 370),
    State.ASSIGNED: (680, 370),
    State.RECALLING: (680, 130),
    State.CANCELLING: (680, 610),
    State.ENDED: (1110, 370),
}
BENDS = {
    (State.WAITING, State.READY): 34.0,
    (State.READY, State.WAITING): 34.0,
    (State.DELAYED, State.READY): -34.0,
    (State.DELAYED, State.WAITING): 96.0,
    (State.WAITING, State.ENDED): 200.0,
    (State.DELAYED, State.ENDED): -200.0,
    (State.READY, State.ENDED): -80.0,
    (State.READY, State.ASSIGNED): 20.0,
    (State.ASSIGNED, State.READY): 20.0,
    (State.ASSIGNED, State.RECALLING): 40.0,
    (State.RECALLING, State.ASSIGNED): 40.0,
    (State.RECALLING, State.CANCELLING): 150.0,
    (State.RECALLING, State.DELAYED): 50.0,
    (State.ASSIGNED, State.CANCELLING): -40.0,
}
#: Where on its arrow a label is, from 0 to 1, if not in the middle.
LABELS_AT = {
    (State.WAITING, State.READY): 0.3,
    (State.READY, State.WAITING): 0.25,
    (State.ASSIGNED, State.WAITING): 0.75,
    (State.RECALLING, State.READY): 0.35,
    (State.RECALLING, State.DELAYED): 0.72,
    (State.ASSIGNED, State.DELAYED): 0.4,
    (State.ASSIGNED, State.READY): 0.3,
    (State.ASSIGNED, State.RECALLING): 0.7,
    (State.RECALLING, State.ASSIGNED): 0.7,
    (State.ASSIGNED, State.CANCELLING): 0.7,
    (State.RECALLING, State.CANCELLING): 0.6,
    (State.RECALLING, State.ENDED): 0.4,
    (State.CANCELLING, State.ENDED): 0.35,
    (State.ASSIGNED, State.ENDED): 0.42,
    (State.READY, State.ENDED): 0.25,
}
#: The most causes that the label of an arrow names; the table below the picture names all.
LABELLED = 2


def states_svg() -> str:
    """The states, and an arrow for each transition of the table, labelled with its usual causes."""
    boxes = {
        state: Box(*PLACES[state], state.value, fill="#fbeeee" if not TRANSITIONS[state] else "#eef4fb")
        for state in State
    }
    arrows = [
        arrow(boxes[start], boxes[end], BENDS.get((start, end), 0.0), label(causes), LABELS_AT.get((start, end), 0.5))
        for start in State
        for end, causes in TRANSITIONS[start].items()
    ]
    return (
        HEAD.format(width=1200, height=740)
        + "".join(path + "\n" for path, _ in arrows)
        + "".join(text + "\n" for _, text in arrows)
        + "".join(box.svg() for box in boxes.values())
        + "</svg>\n"
    )


def label(causes: tuple[str, ...]) -> str:
    """The first of the causes of a transition."""
    return ", ".join(causes[:LABELLED]) + (" …" if len(causes) > LABELLED else "")


def states_table() -> str:
    """The transitions and all of their causes as a table in Markdown."""
    rows = ["| from | to | caused by |", "| --- | --- | --- |"]
    for start in State:
        for end, causes in TRANSITIONS[start].items():
            named = ", ".join(f"`{cause}`" if cause[0].isupper() else cause for cause in causes)
            rows.append(f"| `{start.value}` | `{end.value}` | {named} |")
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
    return (
        HEAD.format(width=1000, height=410)
        + frame
        + "".join(path + text + "\n" for path, text in arrows)
        + "".join(b.svg() for b in boxes)
        + "</svg>\n"
    )


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
