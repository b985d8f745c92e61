"""Say what this machine has, and what that means for making images."""

import argparse
import os
from typing import Any

from t2iedit.cli.terminal import print_json, print_table, silence_libraries

EXTRAS = {"compel": "compel", "demo": "gradio", "ray": "ray"}
"""And the distribution that each brings."""
FAMILIES = {"SD 1.x": (1.1, 0.9), "SDXL": (3.5, 2.6), "SD3": (7.9, 4.8), "FLUX": (16.9, 11.9)}
"""Billions of parameters: of all parts together, and of the largest part."""
ROOM = 0.8
"""The share of memory that weights may take; the rest is for what they compute."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(args: argparse.Namespace) -> int:
    silence_libraries()
    facts = examine()
    if args.json:
        print_json(facts)
        return 0
    print_table([(key, _text(value)) for key, value in facts.items() if key != "advice"])
    for sentence in facts["advice"]:
        print(f"- {sentence}")
    return 0


def examine() -> dict[str, Any]:
    """Versions, processor, accelerators, models and plugins, and sentences on what follows."""
    import torch

    from t2iedit.opening import BUNDLED, computes_in_bfloat16
    from t2iedit.plugins import installed
    from t2iedit.provenance import environment, installed_version

    cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    devices = [f"{card.name}, {card.total_memory / 2**30:.0f} GiB" for card in cards]
    extras = {name: installed_version(brings) for name, brings in EXTRAS.items()}
    models = [name for name, folder in BUNDLED.items() if (folder / "model_index.json").exists()]
    facts: dict[str, Any] = environment() | {
        "processor": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"{torch.backends.cpu.get_cpu_capability()}",
        "memory": f"{_memory() / 2**30:.0f} GiB",
        "bfloat16": computes_in_bfloat16(),
        "cuda": devices,
        "extras": [f"{name} ({found})" for name, found in extras.items() if found],
        "bundled models": models,
        "edits": sorted(installed().edits),
        "failed plugins": [f"{info.name}: {info.error}" for info in installed().failed],
    }
    room = min(card.total_memory for card in cards) if cards else _memory()
    return facts | {"advice": [*_advice(facts), fitting(room, facts)]}


def _advice(facts: dict[str, Any]) -> list[str]:
    if facts["cuda"]:
        advice = ["Models run on the GPU in float16."]
    elif facts["bfloat16"]:
        advice = ["No CUDA device: small models run on the CPU in float32, large ones in bfloat16."]
    else:
        advice = [
            "No CUDA device, and no bfloat16 in this CPU: large models run slowly, in float32."
        ]
    if "shapes" not in facts["bundled models"]:
        advice.append("The bundled model is missing: reinstall t2iedit, or give -m a model.")
    if facts["failed plugins"]:
        advice.append("Some plugins failed to load: update or uninstall them.")
    return advice


def fitting(room: int, facts: dict[str, Any]) -> str:
    """Which families' weights fit into so many bytes, in the dtype that models are opened in here."""
    width = 2 if facts["cuda"] or facts["bfloat16"] else 4
    fits = {
        name: [billions * 1e9 * width < ROOM * room for billions in sizes]
        for name, sizes in FAMILIES.items()
    }
    whole = ", ".join(name for name, (all_parts, _) in fits.items() if all_parts)
    by_part = ", ".join(name for name, (all_parts, largest) in fits.items() if largest > all_parts)
    place = "the GPU's memory" if facts["cuda"] else "memory"
    sentence = f"Of the large models' weights these fit into {place}: {whole or 'none'}"
    if facts["cuda"] and by_part:
        sentence += f"; with --offload model also {by_part}"
    return sentence + "."


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return (
        {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
    )
