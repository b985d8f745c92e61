"""Say what this machine has, and what that means for making images."""

import argparse
import os
from typing import Any

from t2iedit.cli.terminal import print_json, print_table, silence_libraries


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
    from t2iedit.provenance import environment

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    models = [name for name, folder in BUNDLED.items() if (folder / "model_index.json").exists()]
    facts: dict[str, Any] = environment() | {
        "processor": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"{torch.backends.cpu.get_cpu_capability()}",
        "memory": f"{_memory() / 2**30:.0f} GiB",
        "bfloat16": computes_in_bfloat16(),
        "cuda": devices,
        "bundled models": models,
        "edits": sorted(installed().edits),
        "failed plugins": [f"{info.name}: {info.error}" for info in installed().failed],
    }
    return facts | {"advice": _advice(facts)}


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


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return (
        {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
    )
