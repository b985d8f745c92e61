"""The command line and the Python that make a result again."""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from t2iedit import Request
from t2iedit.sweeps import Sweep

Ranges = Mapping[tuple[int, str], str]
"""By the place of an edit and the name of its option, what is swept."""
FLAGS = {
    "negative": "--negative",
    "steps": "--steps",
    "guidance_scale": "--guidance",
    "scheduler": "--scheduler",
    "clip_skip": "--clip-skip",
    "syntax": "--syntax",
    "weights": "--weights",
}


def generate_command(request: Request) -> str:
    """As typed into a shell."""
    return typed("generate", request, ["-o", "edited.png"])


def sweep_command(request: Request, sweeps: Sequence[Sweep], ranges: Sequence[str]) -> str:
    """The grid that the ranges, one a sweep, make."""
    swept = {(s.edit, s.key): text for s, text in zip(sweeps, ranges, strict=True)}
    return typed("compare", request, ["-o", "sweep.png"], swept)


def inspect_command(request: Request, phrase: str | None = None) -> str:
    """The plot, with the attention to a phrase if one is given."""
    look = ["--attention", phrase] if phrase else []
    return typed("inspect", request, [*look, "-o", "plot.png"])


def typed(verb: str, request: Request, end: Sequence[str], ranges: Ranges | None = None) -> str:
    """A command of t2iedit on a request."""
    data = request.to_json()
    words = ["-m", request.model]
    for key, flag in FLAGS.items():
        if key in data:
            words += [flag, f"{data[key]:g}" if isinstance(data[key], float) else str(data[key])]
    for key, flag in (("prompts", "--prompt-for"), ("negatives", "--negative-for")):
        words += [
            part for name, text in data.get(key, {}).items() for part in (flag, f"{name}={text}")
        ]
    words += ["--seed", str(request.seeds[0])]
    if request.size is not None:
        words += ["--size", "x".join(map(str, request.size))]
    for place, edit in enumerate(data.get("edits", [])):
        words += ["-e", edit["name"], *_settings(place, edit["options"], ranges or {})]
    words += end
    dashed = request.prompt.startswith("-")
    words = [*words, "--", request.prompt] if dashed else [request.prompt, *words]
    return shlex.join(["t2iedit", verb, *words])


def generate_python(request: Request) -> str:
    """As a script."""
    end = 'result = t2iedit.generate(model, request)\nt2iedit.save_image(result.image, "edited.png")\n'
    return _script(request, [], end)


def sweep_python(request: Request, sweeps: Sequence[Sweep]) -> str:
    """The grid's cells, and the grid."""
    listed = ", ".join(f"Sweep({s.edit}, {s.key!r}, {s.values!r})" for s in sweeps)
    labels = ", ".join(f"sweeps[{place}].labels" for place in range(len(sweeps)))
    return _script(
        request,
        ["from t2iedit.sweeps import Sweep, cells"],
        f"sweeps = [{listed}]\n"
        "images = [\n"
        "    [t2iedit.generate(model, cell).image for cell in row] for row in cells(request, sweeps)\n"
        "]\n"
        f't2iedit.labelled_grid(images, {labels}, title=request.prompt).save("sweep.png")\n',
    )


def inspect_python(request: Request, phrase: str | None = None) -> str:
    """The facts and the plot, or the attention to a phrase."""
    if phrase is None:
        return _script(
            request,
            [
                "from t2iedit.charts import inspection_chart",
                "from t2iedit.inspection import inspect",
            ],
            "found = inspect(model, request)\n"
            'inspection_chart(found).save("plot.png")\n'
            "print(found.to_json())\n",
        )
    return _script(
        request,
        ["from t2iedit.charts import overlay", "from t2iedit.inspection import attention_map"],
        f"image, heat = attention_map(model, request, {phrase!r})\n"
        'overlay(image, heat).save("attention.png")\n',
    )


def _script(request: Request, imports: list[str], end: str) -> str:
    values = request.to_json()
    values.pop("prompt")
    model = values.pop("model", request.model)
    values = {key: tuple(v) if key == "size" else v for key, v in values.items()}
    arguments = "".join(f"    {key}={value!r},\n" for key, value in values.items())
    return (
        "\n".join(["import t2iedit", *imports])
        + f"\n\nmodel = t2iedit.open_model({model!r})\n"
        + f"request = t2iedit.Request(\n    {request.prompt!r},\n    model={model!r},\n{arguments})\n"
        + end
    )


def _settings(place: int, options: dict[str, Any], ranges: Ranges) -> list[str]:
    swept = {key: text for (edit, key), text in ranges.items() if edit == place}
    words = [f"{key}={_typed(value)}" for key, value in options.items() if key not in swept]
    return words + [f"{key}={text}" for key, text in swept.items()]


def _typed(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
