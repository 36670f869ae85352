"""Draw the diagrams and tables of the documentation: `python docs/draw.py` writes them into docs/.

The states of a task, their transitions and the causes of the transitions come from the table in the code
(trio_sched/core/states.py), the settings from `Config` and the command line. This file decides only where the boxes
of a diagram stand. A test compares the files in docs/ with what this program makes.

Diagrams have no background, so that they read on a light and on a dark page: boxes and labels are light areas with dark
text, arrows and text outside of boxes have a grey with a contrast of at least 4:1 to white and to black.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from trio_sched.core.states import TRANSITIONS, State

HERE = Path(__file__).parent

# ---- the style of all diagrams ---------------------------------------------------------------------------------------

GREY = "#73808f"  # of arrows, frames and text on the page itself
DARK, DIM = "#112233", "#45566a"  # of text on a light area: first line of a box; further lines and labels
BLUE, GREEN, YELLOW, RED = "#dce9f7", "#dcf3e0", "#faeecb", "#f7dede"  # of boxes
LABEL = "#eef1f5"  # the area behind an arrow's label
LABEL_FONT_SIZE = 11
HEAD = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
    'font-family="system-ui, sans-serif" font-size="13">\n'
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    f'<path d="M0 0 L8 4 L0 8 z" fill="{GREY}"/></marker></defs>\n'
)


class Box(NamedTuple):
    """A labelled box; `x` and `y` are its middle, in pixels. The first line of `text` is larger than the others."""

    x: float
    y: float
    text: str
    width: float = 110
    height: float = 34
    fill: str = BLUE

    def svg(self) -> str:
        lines = self.text.split("\n")
        top = self.y - 8 * (len(lines) - 1) + 4.5
        words = "".join(
            f'<text x="{self.x:g}" y="{top + 16 * row:g}" text-anchor="middle" '
            f'fill="{DARK if row == 0 else DIM}" font-size="{13 if row == 0 else 11}">{line}</text>'
            for row, line in enumerate(lines)
        )
        return (
            f'<rect x="{self.x - self.width / 2:g}" y="{self.y - self.height / 2:g}" width="{self.width:g}" '
            f'height="{self.height:g}" rx="7" fill="{self.fill}" stroke="{GREY}"/>{words}\n'
        )

    def border(self, x: float, y: float) -> tuple[float, float]:
        """The point where the line from the middle towards (x, y) leaves the box."""
        dx, dy = x - self.x, y - self.y
        scale = min(self.width / 2 / abs(dx) if dx else math.inf, self.height / 2 / abs(dy) if dy else math.inf)
        return self.x + dx * scale, self.y + dy * scale


def label_svg(x: float, y: float, text: str) -> str:
    """Draw the text of an arrow, which may have several lines, on a light area; `x` and `y` are its middle."""
    lines = text.split("\n")
    width, height = 6.4 * max(map(len, lines)) + 8, 13 * len(lines) + 3
    top = y - height / 2 + 12
    words = "".join(
        f'<text x="{x:.1f}" y="{top + 13 * row:.1f}" text-anchor="middle" font-size="{LABEL_FONT_SIZE}" '
        f'fill="{DIM}">{line}</text>'
        for row, line in enumerate(lines)
    )
    return (
        f'<rect x="{x - width / 2:.1f}" y="{y - height / 2:.1f}" width="{width:.1f}" height="{height:.1f}" rx="4" '
        f'fill="{LABEL}"/>{words}'
    )


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
        label_y = weights[0] * y1 + weights[1] * middle_y + weights[2] * y2
        words = label_svg(label_x, label_y, text)
    return (
        f'<path d="M{x1:.1f} {y1:.1f} Q{middle_x:.1f} {middle_y:.1f} {x2:.1f} {y2:.1f}" fill="none" '
        f'stroke="{GREY}" stroke-width="1.3" marker-end="url(#tip)"/>',
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
    (State.DELAYED, State.READY): -20.0,
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
    (State.WAITING, State.READY): 0.5,
    (State.READY, State.WAITING): 0.2,
    (State.ASSIGNED, State.WAITING): 0.6,
    (State.RECALLING, State.READY): 0.32,
    (State.RECALLING, State.DELAYED): 0.72,
    (State.ASSIGNED, State.DELAYED): 0.4,
    (State.ASSIGNED, State.READY): 0.3,
    (State.ASSIGNED, State.RECALLING): 0.7,
    (State.RECALLING, State.ASSIGNED): 0.7,
    (State.ASSIGNED, State.CANCELLING): 0.7,
    (State.RECALLING, State.CANCELLING): 0.6,
    (State.RECALLING, State.ENDED): 0.4,
    (State.CANCELLING, State.ENDED): 0.4,
    (State.ASSIGNED, State.ENDED): 0.42,
    (State.READY, State.ENDED): 0.62,
    (State.DELAYED, State.WAITING): 0.28,
}
#: The most causes that the label of an arrow names; the table below the picture names all.
LABELLED = 2


def states_svg() -> str:
    """The states, and an arrow for each transition of the table, labelled with its usual causes."""
    boxes = {state: Box(*PLACES[state], state.value, fill=BLUE if TRANSITIONS[state] else RED) for state in State}
    arrows = [
        arrow(
            boxes[start],
            boxes[end],
            BENDS.get((start, end), 0.0),
            causes_label(causes),
            LABELS_AT.get((start, end), 0.5),
        )
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


def causes_label(causes: tuple[str, ...]) -> str:
    """Return the first of the causes of a transition as text."""
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
    """The settings as a table in Markdown: the options of the command line, with the defaults of `Config`."""
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
    """The path of a task: from the client's `submit` through the scheduler to the engine, and back."""
    client = Box(95, 250, "client\nsubmit() … result()", 150, 50, GREEN)
    engine = Box(935, 250, "engine\nruns the call", 150, 50, GREEN)
    nanny = Box(935, 70, "nanny\nof the engine's host", 150, 50, GREEN)
    intake = Box(310, 140, "intake\nbytes to TaskSubmitted", 170, 50)
    results = Box(690, 140, "results\nbytes to TaskFinished", 170, 50)
    notifications = Box(690, 70, "notifications\nbytes to EngineLost", 170, 50)
    auditor = Box(310, 70, "auditor\nclock to TimePassed", 170, 50)
    actor = Box(500, 140, "actor\none batch, one turn", 150, 50, YELLOW)
    core = Box(500, 250, "core.Scheduler\nhandle(event, now) -&gt; effects", 220, 50, YELLOW)
    outbox = Box(500, 355, "outbox\nper-peer queues", 150, 50)
    frame = (
        f'<rect x="200" y="15" width="600" height="380" rx="10" fill="none" stroke="{GREY}" stroke-dasharray="5 4"/>'
        f'<text x="216" y="35" fill="{GREY}" font-size="12">the scheduler: one process, one Trio nursery</text>\n'
    )
    arrows = [
        arrow(client, intake, text="Submit"),
        arrow(intake, actor),
        arrow(results, actor),
        arrow(notifications, actor),
        arrow(auditor, actor),
        arrow(actor, core, 36, "events"),
        arrow(core, actor, 36, "effects"),
        arrow(actor, outbox, -150, "effects"),
        arrow(outbox, engine, -30, "Assign"),
        arrow(outbox, client, 30, "Results"),
        arrow(engine, results, text="Finished"),
        arrow(nanny, notifications, text="WorkerDied"),
    ]
    boxes = [client, engine, nanny, intake, results, notifications, auditor, actor, core, outbox]
    return (
        HEAD.format(width=1030, height=410)
        + frame
        + "".join(path + "\n" for path, _ in arrows)
        + "".join(text + "\n" for _, text in arrows if text)
        + "".join(box.svg() for box in boxes)
        + "</svg>\n"
    )


PICTURES = {"states.svg": states_svg, "life.svg": life_svg}
TABLES = {"states.md": states_table, "configuration.md": settings_table}
START, END = "<!-- drawn by docs/draw.py -->\n", "\n<!-- /drawn -->"


def split(page: str) -> tuple[str, str, str]:
    """Split a page into the text before the drawn table, the table, and the text after it."""
    before, _, rest = page.partition(START)
    drawn, _, after = rest.partition(END)
    return before + START, drawn, END + after


if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (HERE / name).write_text(draw(), encoding="utf-8")
    for name, table in TABLES.items():
        before, _, after = split((HERE / name).read_text(encoding="utf-8"))
        (HERE / name).write_text(before + table() + after, encoding="utf-8")
