"""The command line and the Python that make a result again."""

import json
import shlex
from typing import Any

from t2iedit import Request


def command(request: Request) -> str:
    """As typed into a shell."""
    words = ["t2iedit", "generate", request.prompt, "-m", request.model]
    if request.negative is not None:
        words += ["--negative", request.negative]
    words += ["--seed", str(request.seeds[0])]
    for flag, value in (("--steps", request.steps), ("--guidance", request.guidance_scale)):
        if value is not None:
            words += [flag, f"{value:g}"]
    if request.size is not None:
        words += ["--size", f"{request.size[0]}x{request.size[1]}"]
    for edit in request.to_json().get("edits", []):
        options = [f"{key}={_typed(value)}" for key, value in edit["options"].items()]
        words += ["-e", edit["name"], *options]
    words += ["-o", "edited.png"]
    if request.prompt.startswith("-"):
        words = [*words[:2], *words[3:], "--", request.prompt]
    return " ".join(shlex.quote(word) for word in words)


def python(request: Request) -> str:
    """As a script."""
    values = request.to_json()
    values.pop("prompt")
    model = values.pop("model", request.model)
    values = {key: tuple(v) if key == "size" else v for key, v in values.items()}
    arguments = "".join(f"    {key}={value!r},\n" for key, value in values.items())
    return (
        "from pathlib import Path\n\nimport t2iedit\n\n"
        f"model = t2iedit.open_model({model!r})\n"
        "request = t2iedit.Request(\n"
        f"    {request.prompt!r},\n    model={model!r},\n{arguments})\n"
        "result = t2iedit.generate(model, request)\n"
        't2iedit.save_image(result.image, Path("edited.png"))\n'
    )


def _typed(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
