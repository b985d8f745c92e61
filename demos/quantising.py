"""The Quantise tab: fewer bits for the model's weights, what that saves, and what it does to a picture."""

import shlex
import shutil
import tempfile
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import gradio as gr
from action import QUIET, Action, seen
from again import Again
from form import Form
from hosting import Host
from quantising_work import Measured, Quantised, estimated, quantised
from stopping import Stops
from t2iedit_mixdq.quantising import Wish
from t2iedit_mixdq.schemes import WHOLE
from temporary import folder
from visit import Visit

from t2iedit.errors import InvalidRequest, T2IEditError

NAME = "Quantise"
WIDTHS = ("2", "3", "4", "4.5", "5", "6", "8", "16")
DOWNLOAD = 256 * 2**20
"""Bytes of a model folder that is offered as a file."""


class Tab:
    """Its components, and what Quantise does; the prompt and the seed are those of the controls."""

    def __init__(self, host: Host, form: Form, visit: Visit, stops: Stops) -> None:
        self.host, self.form = host, form
        gr.Markdown(
            "MixDQ stores the UNet's weights in few bits and computes in integers where the machine can. The model is"
            " calibrated, packed and measured beside the original; edits stay off meanwhile."
        )
        with gr.Row():
            self.weights = gr.Dropdown(
                list(WIDTHS), value="8", label="Bits of weights", info="In the mean; 16 leaves them alone.",
                min_width=140, elem_id="weights",
            )  # fmt: skip
            self.activations = gr.Dropdown(
                ["8", "16"], value="8", label="Bits of what layers read", info="With 8 they compute in integers.",
                min_width=140, elem_id="activations",
            )  # fmt: skip
        self.uniform = gr.Checkbox(
            True, label="Every layer the same",
            info="Without, each layer gets as many as it needs: 2, 4 or 8. Judging them takes minutes.",
            elem_id="uniform",
        )  # fmt: skip
        estimate = gr.Markdown(self._estimate("8", form.model.value), elem_id="estimate")
        action = Action("quantise", "Quantise", stops)
        with gr.Column(visible=False) as self.result:
            self.table = gr.HTML(elem_id="quantise-table")
            gr.Markdown("Left of the line as it is, right of it quantised.", elem_classes="caption")
            self.slider = gr.ImageSlider(
                label="As it is and quantised", show_label=False, format="png", interactive=False, max_height=420,
                elem_id="quantise-slider",
            )  # fmt: skip
            self.file = gr.File(
                label="The model folder, packed", interactive=False, elem_id="packed"
            )
        self.again = Again("quantise")
        for changed in (self.weights, form.model):
            changed.change(self._estimate, [self.weights, form.model], estimate, **QUIET)
        inputs: list[Any] = [self.weights, self.activations, self.uniform, *form.inputs]
        outputs: list[Any] = [self.result, self.table, self.slider, self.file, *self.again.outputs]
        action.connect(self.work, inputs, outputs)

    def work(self, stop: threading.Event, *values: Any) -> Generator[Any, None, None]:
        """News, then the comparison."""
        weights, activations, uniform = values[:3]
        request = self.form.asked(values[3:]).model_copy(update={"edits": ()})
        wish = Wish(_bits(weights), _bits(activations), uniform=uniform)
        models = self.host.models
        model, source = models.opened(request.model), models.source(request.model)
        name = f"{request.model}-w{weights}a{activations}"
        with tempfile.TemporaryDirectory(prefix="quantise-", dir=folder()) as place:
            yield {self.table: "", self.file: None}
            for said in quantised(
                model, source, models.device, wish, request, Path(place) / name, stop
            ):
                if isinstance(said, Quantised):
                    yield self._made(said, wish, request.model)
                else:
                    yield said

    def _made(self, made: Quantised, wish: Wish, model: str) -> dict[Any, Any]:
        bits = made.facts["means"]["weights"]
        guess = estimated(self.host.models.opened(model), bits)
        return {
            self.result: seen(),
            self.table: table(made.before, made.after, guess, bits),
            self.slider: (made.before.image, made.after.image),
            self.file: _packed(made.folder),
        } | self.again.showing(*reproduced(wish, model, made.folder.name))

    def _estimate(self, weights: str, model: str) -> str:
        """What the bits should save, before anything is done."""
        try:
            opened = self.host.models.opened(model)
            before, after = estimated(opened, WHOLE), estimated(opened, _bits(weights))
        except T2IEditError as error:
            return str(error)
        return f"The UNet's weights: **{size(before)}** now, about **{size(after)}** then."


def table(before: Measured, after: Measured, guess: int, bits: float) -> str:
    """Both models side by side as HTML."""
    rows = (
        ("Weights of the UNet, estimated", size(before.weights), size(guess)),
        ("Weights of the UNet, measured", size(before.weights), size(after.weights)),
        ("The whole process at its peak", size(before.peak), size(after.peak)),
        ("Seconds a picture, median of three", f"{before.seconds:.2f}", f"{after.seconds:.2f}"),
        ("Speed", "1 ×", f"{before.seconds / after.seconds:.2f} ×"),
    )
    lines = "".join(f"<tr><th>{what}</th><td>{a}</td><td>{b}</td></tr>" for what, a, b in rows)
    head = f"<tr><th></th><th>as it is</th><th>{bits:g} bits a weight</th></tr>"
    return f'<table class="facts"><thead>{head}</thead><tbody>{lines}</tbody></table>'


def size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"


def reproduced(wish: Wish, model: str, name: str) -> tuple[str, str]:
    """The command line and the Python."""
    words = ["t2iedit", "mixdq", "quantize", "-m", model, "--weights", f"{wish.weights:g}"]
    words += [
        "--activations",
        f"{wish.activations:g}",
        *(["--uniform"] if wish.uniform else []),
        "-o",
        name,
    ]
    python = (
        "from pathlib import Path\n\n"
        "import t2iedit\n"
        "from t2iedit_mixdq.calibration import Settings\n"
        "from t2iedit_mixdq.prompts import default_prompts\n"
        "from t2iedit_mixdq.quantising import Wish, quantise\n\n"
        f"model = t2iedit.open_model({model!r})\n"
        f"wish = Wish({wish.weights:g}, {wish.activations:g}, uniform={wish.uniform})\n"
        f"recipe = quantise(model, wish, Settings(default_prompts(model.name)), Path({name!r}))\n"
        "print(recipe.facts)\n"
    )
    return shlex.join(words), python


def _bits(text: Any) -> float:
    if text not in WIDTHS:
        raise InvalidRequest(f"{text} bits are not on offer here; choose of {', '.join(WIDTHS)}")
    return float(text)


def _packed(made: Path) -> str | None:
    """The folder as one file, unless it is too large."""
    if sum(path.stat().st_size for path in made.rglob("*") if path.is_file()) > DOWNLOAD:
        return None
    place = Path(tempfile.mkdtemp(prefix="packed-", dir=folder())) / made.name
    return shutil.make_archive(str(place), "zip", made.parent, made.name)
