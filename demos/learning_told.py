"""What is said of a concept that was learned, and how to learn it again."""

import re
import shlex

from learning_work import Concept
from reports import plain
from t2iedit_context.settings import PRESETS, Settings, preset_for


def file_name(settings: Settings) -> str:
    """After the placeholder, in letters that every system takes."""
    return (re.sub(r"[^A-Za-z0-9-]+", "", settings.placeholder) or "concept") + ".safetensors"


def told_learning(concept: Concept, settings: Settings) -> str:
    """What was learned, as Markdown."""
    name = plain(settings.placeholder)
    if concept.cut_short is not None:
        return f"- {plain(concept.cut_short)}; **{name}** is kept as it was then."
    report = concept.report
    lines = [f"- Learned **{name}** in {report['steps']} steps and {report['seconds']:.0f} s."]
    for encoder, facts in report["encoders"].items():
        near = ", ".join(plain(word) for word in facts["nearest words"][0])
        lines.append(
            f"- The words around it are as they are around “{plain(settings.category)}” to"
            f" {facts['context similarity after']:.3f} (cosine, {plain(encoder)}). Nearest words: {near}."
        )
    return "\n".join(lines)


def reproduced(settings: Settings, model: str) -> tuple[str, str]:
    """The command line and the Python, with what differs from the preset."""
    usual = Settings(placeholder="x", category="x", **PRESETS[preset_for(model)]).model_dump()
    own = {key: value for key, value in settings.model_dump().items() if value != usual[key]}
    name, category = own.pop("placeholder"), own.pop("category")
    flags = [
        word for key, value in own.items() for word in (f"--{key.replace('_', '-')}", str(value))
    ]
    words = [
        "t2iedit",
        "core",
        "learn",
        "pictures",
        "--placeholder",
        name,
        "--category",
        category,
        "-m",
        model,
    ]
    command = shlex.join([*words, *flags, "-o", file_name(settings)])
    values = {"placeholder": name, "category": category} | PRESETS[preset_for(model)] | own
    arguments = ", ".join(f"{key}={value!r}" for key, value in values.items())
    python = (
        "import t2iedit\n"
        "from t2iedit_context.learning import learn\n"
        "from t2iedit_context.settings import Settings\n\n"
        f'model = t2iedit.open_model({model!r}, dtype="float32")\n'
        f"settings = Settings({arguments})\n"
        f'learned = learn(model, "pictures", settings, {file_name(settings)!r})\n'
        "print(learned.report)\n"
    )
    return command, python
