"""The Sweep tab: one or two numeric options over ranges of values, as a labelled grid."""

from collections.abc import Iterator
from typing import Any

import gradio as gr
from form import Form
from hosting import Host
from painting import Moment, Stopped, painted
from pictures import MODEL, QUIET, Stops
from telling import told

from t2iedit import Request, Result
from t2iedit.errors import InvalidRequest
from t2iedit.plots import labelled_grid
from t2iedit.sweeps import Sweep, cells, swept_values

NONE = "(none)"


class SweepTab:
    """Its components, and what its buttons do; the request is the one of the controls."""

    def __init__(self, host: Host, form: Form, stops: Stops) -> None:
        self.host, self.form, self.stops = host, form, stops
        numeric = [
            f"{part.edit.name}.{control.name}"
            for part in form.parts
            for control in part.controls
            if control.kind in ("slider", "number") and not control.many
        ]
        gr.Markdown(
            "The edit must be switched on at the left; the range here takes the place of its option."
        )
        self.axes = []
        for where, first in (("along the columns", numeric[:1]), ("along the rows", [NONE])):
            with gr.Row():
                option = gr.Dropdown(
                    [NONE, *numeric],
                    value=first[0] if first else NONE,
                    label=f"Option {where}",
                    min_width=140,
                )
                values = gr.Textbox(
                    "0..1..0.25", label="FIRST..LAST..STEP", min_width=140, max_length=60
                )
                self.axes += [option, values]
        with gr.Row():
            start = gr.Button("Sweep", variant="primary", elem_id="sweep")
            cancel = gr.Button("Cancel", variant="stop")
        self.status = gr.Markdown(elem_id="sweep-status")
        self.grid = gr.Image(
            label="Grid", format="png", type="pil", interactive=False, elem_id="grid"
        )
        self.cells = gr.Gallery(
            label="Cells, each carrying its recipe",
            columns=5,
            fit_columns=False,
            format="png",
            interactive=False,
        )
        start.click(
            self.run,
            [*self.axes, *form.inputs],
            [self.grid, self.cells, self.status],
            concurrency_id=MODEL,
            concurrency_limit=1,
            show_progress="minimal",
            api_visibility="private",
        )
        cancel.click(stops.cancel, None, None, **QUIET)

    def run(self, visitor: gr.Request, *values: Any) -> Iterator[tuple[Any, ...]]:
        """The grid and its cells, with news on the way."""
        stop = self.stops.begin(visitor)
        try:
            with told():
                request = self.form.asked(values[4:])
                sweeps = _sweeps(request, values[:4])
                rows = cells(request, sweeps)
                flat = [one for row in rows for one in row]
                if len(flat) > self.host.limits.cells:
                    raise InvalidRequest(
                        f"a sweep may have at most {self.host.limits.cells} cells here, not {len(flat)}"
                    )
                model = self.host.models.opened(request.model)
                for said in painted(model, flat, stop):
                    if isinstance(said, Moment):
                        yield gr.skip(), gr.skip(), said.sentence
                    else:
                        yield *_drawn(request, sweeps, said), "Done."
        except Stopped:
            yield gr.skip(), gr.skip(), "Stopped."
        finally:
            self.stops.end(visitor)


def _sweeps(request: Request, axes: Any) -> list[Sweep]:
    """Raises `InvalidRequest` for an edit that is off, or what is no range."""
    found = []
    for option, text in ((axes[0], axes[1]), (axes[2], axes[3])):
        if option in (None, NONE):
            continue
        name, _, key = option.rpartition(".")
        places = [place for place, edit in enumerate(request.edits) if edit.name == name]
        if not places:
            raise InvalidRequest(f'switch the edit "{name}" on before sweeping its {key}')
        values = swept_values(text or "")
        if values is None:
            raise InvalidRequest(f'"{text}" is no range; write FIRST..LAST..STEP, like 0..1..0.25')
        found.append(Sweep(places[0], key, values))
    if not found:
        raise InvalidRequest("choose an option to sweep")
    if len({(sweep.edit, sweep.key) for sweep in found}) < len(found):
        raise InvalidRequest("both axes are the same option; choose two, or one and (none)")
    return found


def _drawn(
    request: Request, sweeps: list[Sweep], results: list[Result]
) -> tuple[Any, list[tuple[Any, str]]]:
    columns = sweeps[0].labels
    rows = sweeps[1].labels if len(sweeps) > 1 else []
    images = [result.image for result in results]
    table = [images[at : at + len(columns)] for at in range(0, len(images), len(columns))]
    labels = [f"{column}, {row}" if row else column for row in rows or [""] for column in columns]
    return labelled_grid(table, columns, rows, request.prompt), list(
        zip(images, labels, strict=True)
    )
