"""The Sweep tab: one or two numeric options over ranges of values, as a labelled grid."""

import threading
from collections.abc import Generator, Sequence
from typing import Any

import gradio as gr
from action import QUIET, Action, seen
from again import Again
from form import Form
from hosting import Host
from painting import painted
from reproduce import sweep_command, sweep_python
from stopping import Stops
from visit import Visit
from watching import Moment
from widgets import gallery

from t2iedit import Request, Result
from t2iedit.controls import Control
from t2iedit.errors import InvalidRequest
from t2iedit.plots import labelled_grid
from t2iedit.sweeps import Sweep, cells, swept_values

NAME = "Sweep"
NONE = "(none)"
RANGE = "0..1..0.25"
CELLS = 4
"""Steps between the ends of a slider that are offered as a range."""


class Tab:
    """Its components, and what its buttons do; the request is the one of the controls."""

    def __init__(self, host: Host, form: Form, visit: Visit, stops: Stops) -> None:
        self.host, self.form, self.visit = host, form, visit
        self.numeric = {
            f"{part.edit.name}.{control.name}": control
            for part in form.parts
            for control in part.controls
            if control.kind in ("slider", "number") and not control.many
        }
        gr.Markdown(
            "Choose one or two options of edits that are switched on. The ranges here take the place of their values."
        )
        names = list(self.numeric)
        first = "decor.alpha" if "decor.alpha" in names else next(iter(names), NONE)
        self.axes: list[Any] = []
        for where, option in (("along the columns", first), ("along the rows", NONE)):
            self.axes += self._axis(where, option)
        action = Action("sweep", "Sweep", stops)
        with gr.Column(visible=False) as self.result:
            self.grid = gr.Image(
                label="Grid",
                show_label=False,
                format="png",
                type="pil",
                interactive=False,
                elem_id="grid",
            )
            label = "Cells, each carrying its recipe"
            self.cells = gallery("cells", 5, label=label, show_label=False, fit_columns=False)
        self.again = Again("sweep")
        outputs: list[Any] = [
            self.result,
            self.grid,
            self.cells,
            *self.again.outputs,
            *visit.outputs,
        ]
        action.connect(self.work, [*self.axes, visit.kept, *form.inputs], outputs)

    def work(self, stop: threading.Event, *values: Any) -> Generator[Any, None, None]:
        """The cells as they are done, then the grid."""
        axes, kept, request = values[:4], values[4], self.form.asked(values[5:])
        sweeps = self._sweeps(request, axes)
        flat = [one for row in cells(request, sweeps) for one in row]
        if len(flat) > self.host.limits.cells:
            raise InvalidRequest(
                f"a sweep may have at most {self.host.limits.cells} cells here, not {len(flat)}"
            )
        yield {self.result: seen(), self.grid: None, self.cells: None}
        results: list[Result] = []
        for said in painted(self.host.opened(request), flat, stop):
            if isinstance(said, Moment):
                yield said
                continue
            results.append(said)
            yield {self.cells: _labelled(sweeps, results)}
        yield self._drawn(request, sweeps, axes, results) | self.visit.with_new(kept, results)

    def _axis(self, where: str, option: str) -> list[Any]:
        with gr.Row():
            chosen = gr.Dropdown(
                [NONE, *self.numeric], value=option, label=f"Option {where}", min_width=140
            )
            values = gr.Textbox(
                offered(self.numeric.get(option)),
                label="FIRST..LAST..STEP",
                min_width=140,
                max_length=60,
            )
        chosen.input(lambda name: offered(self.numeric.get(name)), chosen, values, **QUIET)
        return [chosen, values]

    def _sweeps(self, request: Request, axes: Sequence[Any]) -> list[Sweep]:
        """Raises `InvalidRequest` for an edit that is off, or what is no range."""
        found = [_sweep(request, option, text) for option, text in _chosen(axes)]
        if not found:
            raise InvalidRequest("choose an option to sweep")
        if len({(sweep.edit, sweep.key) for sweep in found}) < len(found):
            raise InvalidRequest("both axes are the same option; choose two, or one and (none)")
        return found

    def _drawn(
        self, request: Request, sweeps: list[Sweep], axes: Sequence[Any], results: list[Result]
    ) -> dict[Any, Any]:
        columns = sweeps[0].labels
        rows = sweeps[1].labels if len(sweeps) > 1 else []
        images = [result.image for result in results]
        table = [images[at : at + len(columns)] for at in range(0, len(images), len(columns))]
        ranges = [text for _, text in _chosen(axes)]
        texts = sweep_command(request, sweeps, ranges), sweep_python(request, sweeps)
        grid = labelled_grid(table, columns, rows, request.prompt)
        return {self.grid: grid} | self.again.showing(*texts, request)


def offered(control: Control | None) -> str:
    """A range over a slider's length, or one to begin with."""
    if control is None or control.kind != "slider" or control.low is None or control.high is None:
        return RANGE
    step = (control.high - control.low) / CELLS
    step = max(1, round(step)) if control.whole else round(step, 4)
    return f"{control.low:g}..{control.high:g}..{step:g}"


def _chosen(axes: Sequence[Any]) -> list[tuple[str, str]]:
    pairs = ((axes[0], axes[1]), (axes[2], axes[3]))
    return [(option, text or "") for option, text in pairs if option not in (None, NONE)]


def _sweep(request: Request, option: str, text: str) -> Sweep:
    name, _, key = option.rpartition(".")
    places = [place for place, edit in enumerate(request.edits) if edit.name == name]
    if not places:
        raise InvalidRequest(f'switch the edit "{name}" on before sweeping its {key}')
    values = swept_values(text)
    if values is None:
        raise InvalidRequest(f'"{text}" is no range; write FIRST..LAST..STEP, like {RANGE}')
    return Sweep(places[0], key, values)


def _labelled(sweeps: list[Sweep], results: Sequence[Result]) -> list[tuple[Any, str]]:
    """The pictures so far under their values."""
    rows = sweeps[1].labels if len(sweeps) > 1 else [""]
    labels = [f"{column}, {row}" if row else column for row in rows for column in sweeps[0].labels]
    return [(one.image, label) for one, label in zip(results, labels, strict=False)]
