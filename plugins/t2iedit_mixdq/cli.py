"""The command `t2iedit mixdq`: quantise a model, or report what a quantised one really is."""

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from t2iedit import UserError

ARCHITECTURE_NAMES = ("sdxl", "sd15")


def add_command(parser: argparse.ArgumentParser) -> None:
    """The arguments of both verbs."""
    verbs = parser.add_subparsers(title="commands", metavar="VERB", required=True)
    _add_quantize(verbs.add_parser("quantize", help="a model folder with packed weights"))
    _add_report(verbs.add_parser("report", help="bits, bytes and what really runs, by layer"))


def _add_quantize(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-m", "--model", default="shapes", help='a diffusers folder or hub id; default "shapes"')
    add("--weights", default="8", metavar="BITS|FILE", help="mean bits of weights, or a YAML file")
    add("--activations", default="8", metavar="BITS|FILE", help="likewise of what layers read")
    add("--uniform", action="store_true", help="one width for every layer, none allocated")
    add("--prompts", metavar="FILE", help="one calibration prompt a line")
    add("--steps", type=int, metavar="N", help="denoising steps while calibrating")
    add("--size", metavar="WxH", help="in pixels, while calibrating")
    add("--search", choices=("minmax", "mse"), default="minmax", help="how ranges are found")
    add(
        "--sensitivity", choices=("measured", "hessian"), default="measured", help="how it is found"
    )
    add("--flexround", action="store_true", help="learn how weights are rounded")
    add("--group", type=int, default=0, metavar="N", help="inputs that share a step under 8 bits")
    add("--text-encoders", action="store_true", help="pack the text encoders too, in 8 bits")
    add("--naive", action="store_true", help="quantise BOS rows like all others, for comparison")
    add("--protect", type=float, default=0.01, metavar="SHARE", help="of layers to leave whole")
    add("--judges", type=int, default=4, metavar="N", help="prompts that judge sensitivity")
    add(
        "--budgets",
        type=int,
        default=1,
        metavar="N",
        help="means tried, down to 0.3 below BITS",
    )
    add("--device", help="cpu, cuda, ...")
    add("--dtype", help="float32, bfloat16 or float16")
    add("-o", "--output", required=True, metavar="DIR", help="the folder to make")
    add("--json", action="store_true", help="print what was made as JSON")
    add("--debug", action="store_true", help="show tracebacks")
    parser.set_defaults(run=run_quantize)


def _add_report(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("path", metavar="DIR|FILE.yaml", help="a quantised folder, or bits by layer")
    add("--architecture", choices=ARCHITECTURE_NAMES, help="whose layers a YAML file names")
    add("-m", "--model", help="the same, by a model")
    add("--of", choices=("weights", "activations"), help="what a YAML file gives bits for")
    add("--size", type=int, metavar="N", help="side of the latents; default the model's own")
    add("--device", default="cpu", help="where to load and measure")
    add("--dtype", help="float32, bfloat16 or float16; default float32")
    add("--bits-only", action="store_true", help="load and measure nothing")
    add("--json", action="store_true", help="as JSON, every layer included")
    add("--debug", action="store_true", help="show tracebacks")
    parser.set_defaults(run=run_report)


def run_quantize(args: argparse.Namespace) -> int:
    from t2iedit import open_model
    from t2iedit_mixdq.calibration import Settings
    from t2iedit_mixdq.prompts import default_prompts, read_prompts
    from t2iedit_mixdq.quantising import Wish, quantise

    _quiet()
    wish = Wish(
        _bits(args.weights, "--weights"),
        _bits(args.activations, "--activations"),
        uniform=args.uniform,
        protect=_within(args.protect, "--protect", 0.0, 1.0),
        judges=int(_within(float(args.judges), "--judges", 1.0, 1000.0)),
        budgets=int(_within(float(args.budgets), "--budgets", 1.0, 100.0)),
        hessian=args.sensitivity == "hessian",
        flexround=args.flexround,
        group=_group(args.group),
        text_encoders=args.text_encoders,
    )
    prompts = read_prompts(Path(args.prompts)) if args.prompts else None
    if Path(args.output).exists():
        raise UserError(f'"{args.output}" exists already; give -o another folder, or remove it')
    model = open_model(args.model, device=args.device, dtype=args.dtype)
    settings = Settings(
        prompts or default_prompts(model.name),
        search=args.search,
        bos_aware=not args.naive,
        steps=args.steps,
        size=_size(args.size),
    )
    recipe = quantise(model, wish, settings, Path(args.output), stage=_bar)
    if args.json:
        _print_json({"path": args.output} | recipe.facts)
    else:
        print(args.output)
        for name, value in _flat(recipe.facts):
            print(f"{name}: {value}", file=sys.stderr)
    return 0


def run_report(args: argparse.Namespace) -> int:
    from t2iedit_mixdq.recipe import folder_of

    _quiet()
    path = folder_of(Path(args.path))
    if args.size is not None:
        _within(float(args.size), "--size", 1.0, 4096.0)
    report = folder_report(path, args) if path.is_dir() else file_report(path, args)
    if args.json:
        _print_json(report)
        return 0
    rows = report.pop("layers", [])
    if rows:
        head = ("layer", "weights", "activations", "runs", "bytes", "why")
        _print_table([head, *((r["name"], *(str(r[key]) for key in head[1:])) for r in rows)])
        print()
    _print_table([(name, str(value)) for name, value in _flat(report)])
    return 0


def folder_report(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """What a quantised folder is, and what loading it here makes of it."""
    import torch

    from t2iedit.opening import usable_device, usable_dtype
    from t2iedit_mixdq.checkpoint import hollow_unet, load_unet, verify
    from t2iedit_mixdq.recipe import read_recipe
    from t2iedit_mixdq.report import (
        SIZES,
        bits_report,
        engines,
        float_bytes,
        layer_rows,
        measured_memory,
    )
    from t2iedit_mixdq.wiring import survey

    recipe = read_recipe(folder)
    hollow = hollow_unet(folder)
    size = args.size or hollow.config.sample_size
    layers = survey(hollow, size)
    report: dict[str, Any] = {of: bits_report(getattr(recipe, of), layers, of) for of in SIZES} | {
        "BOS-aware": recipe.bos_aware,
        "rounding": recipe.rounding,
        "inputs that share a step": recipe.group or "all of an output channel",
        "text encoders": "8 bits" if recipe.text_encoders else "whole",
        "made": recipe.facts,
    }
    if args.bits_only:
        return report
    device, dtype = usable_device(args.device), usable_dtype(args.dtype) or torch.float32
    verify(folder)
    unet = load_unet(folder, device, dtype)
    rows = layer_rows(unet, layers)
    return report | {
        "runs": engines(rows),
        "notes": list(unet.notes),
        "bytes": measured_memory(unet, size) | {"static in 16 bits": float_bytes(layers, unet)},
        "layers": rows,
    }


def file_report(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The true means of a YAML file of bits by layer, on a model's or a named architecture's layers."""
    from t2iedit_mixdq.recipe import check_fits, read_bits
    from t2iedit_mixdq.report import bits_report

    bits = read_bits(path)
    layers = _layers_for(bits, args)
    check_fits(bits, layers, f'"{path}"')
    of = args.of or ("activations" if path.stem.startswith("act") else "weights")
    return {of: bits_report(bits, layers, of)}


def _layers_for(bits: dict[str, int], args: argparse.Namespace) -> dict[str, Any]:
    from t2iedit_mixdq.architectures import ARCHITECTURES, hollow
    from t2iedit_mixdq.wiring import survey

    if args.model is not None:
        from t2iedit import open_model

        return survey(open_model(args.model).denoiser, args.size)
    # Upstream's files are for pictures of 512 pixels.
    side = args.size or 64
    if args.architecture is not None:
        return survey(hollow(ARCHITECTURES[args.architecture]), side)
    for config in ARCHITECTURES.values():
        layers = survey(hollow(config), side)
        if set(bits) <= set(layers):
            return layers
    raise UserError(
        f"these layers are not those of {' or '.join(ARCHITECTURES)}; say with -m which model they belong to"
    )


def _bits(text: str, flag: str) -> float | Path:
    if re.fullmatch(r"\d{1,3}(\.\d{1,6})?", text):
        return float(text)
    if text.endswith((".yaml", ".yml")) or Path(text).is_file():
        return Path(text)
    raise UserError(f"{flag} {text}: give a number of bits, like 8 or 4.5, or a YAML file")


def _within(value: float, flag: str, least: float, most: float) -> float:
    if not least <= value <= most:
        raise UserError(f"{flag} {value:g} is out of range; give {least:g} to {most:g}")
    return value


def _group(inputs: int) -> int:
    if inputs and (inputs < 16 or inputs % 4 or inputs > 1024):
        raise UserError(
            f"--group {inputs}: give a multiple of 4 from 16 to 1024 inputs, or 0 for one step a channel"
        )
    return inputs


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if found is None:
        raise UserError(f"--size {text}: write width x height in pixels, like 512x512")
    return int(found[1]), int(found[2])


def _bar(description: str, total: int) -> Callable[[int], None]:
    from tqdm import tqdm

    bar = tqdm(total=total, desc=description, delay=1, disable=None, leave=False)

    def advance(count: int) -> None:
        bar.update(count)
        if bar.n >= total:
            bar.close()

    return advance


def _quiet() -> None:
    from t2iedit.cli.terminal import silence_libraries

    silence_libraries()


def _flat(value: dict[str, Any], before: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, item in value.items():
        if isinstance(item, dict):
            rows += _flat(item, f"{before}{key}: ")
        elif not isinstance(item, list) or item:
            shown = ", ".join(map(str, item)) if isinstance(item, list) else item
            rows.append((f"{before}{key}", shown))
    return rows


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())
