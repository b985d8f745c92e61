"""Learn concepts from pictures, and turn their files into other programs' and back."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from t2iedit import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, add, run, told in (
        ("learn", _add_learn, run_learn, "learn a concept from a folder of pictures"),
        (
            "convert",
            _add_convert,
            run_convert,
            "write a concept's file in another layout",
        ),
        ("show", _add_show, run_show, "say what a concept's file holds"),
    ):
        command = commands.add_parser(name, help=told, description=told, allow_abbrev=False)
        command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS)
        command.add_argument("--json", action="store_true", help="print the result as JSON")
        command.set_defaults(run=run)
        add(command)


def _add_learn(parser: argparse.ArgumentParser) -> None:
    number: dict[str, Any] = {"type": int, "metavar": "N"}
    real: dict[str, Any] = {"type": float, "metavar": "X"}
    forms: dict[str, Any] = {"choices": ("paper", "code")}
    parser.add_argument("images", metavar="IMAGES_DIR", help="a few pictures of the concept")
    parser.add_argument("--placeholder", required=True, help="its name in prompts, like <my-toy>")
    parser.add_argument("--category", required=True, metavar="WORD", help="what it is a kind of")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help=".safetensors")
    parser.add_argument("-m", "--model", default="shapes", help="a diffusers folder or hub id")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--preset", choices=("paper", "shapes"), help="default: by the model")
    parser.add_argument(
        "--kind",
        choices=("animate", "inanimate", "style", "shape", "texture"),
        help="which prompts it is tried in",
    )
    parser.add_argument("--prompts", metavar="FILE", help="such prompts of your own, {} in each")
    parser.add_argument("--instance", metavar="TEXT", help="what the pictures show, with {}")
    parser.add_argument("--resume", action="store_true", help="go on with an unfinished run")
    parser.add_argument("--skip-broken", action="store_true", help="pass over broken pictures")
    parser.add_argument(
        "--previews",
        type=int,
        default=100,
        metavar="N",
        help="a strip every N steps; 0 for none",
    )
    parser.add_argument("--save-every", type=int, default=50, metavar="N", help="checkpoints")
    stage = parser.add_argument_group("the concept; CoRe's values by default")
    stage.add_argument("--vectors", help="tokens of the concept", **number)
    stage.add_argument("--steps", **number)
    stage.add_argument("--batch-size", **number)
    stage.add_argument("--accumulation", help="batches a step", **number)
    stage.add_argument("--learning-rate", **real)
    stage.add_argument("--weight-decay", **real)
    stage.add_argument("--embedding-weight", help="lambda_emb; 0 leaves CER out", **real)
    stage.add_argument("--attention-weight", help="lambda_attn; 0 leaves CAR out", **real)
    stage.add_argument("--embedding-form", **forms)
    stage.add_argument("--attention-form", **forms)
    stage.add_argument("--attention-batch", help="of a batch; half by default", **number)
    stage.add_argument(
        "--rescale",
        metavar="A..B",
        help="steps that keep the norm of step A; none in plain inversion",
    )
    stage.add_argument("--resolution", help="pixels a side", **number)
    stage.add_argument("--no-augment", action="store_const", const=False, dest="augment")
    stage.add_argument("--crops", help="changed pictures encoded beforehand", **number)
    stage.add_argument("--seed", **number)
    machine = parser.add_argument_group("the machine")
    machine.add_argument("--precision", choices=("no", "bf16", "fp16"))
    machine.add_argument(
        "--gradient-checkpointing", action=argparse.BooleanOptionalAction, default=None
    )
    second = parser.add_argument_group("the second stage")
    second.add_argument("--finetune-unet", choices=("lora", "full"))
    second.add_argument("--finetune-steps", **number)
    second.add_argument("--finetune-batch-size", **number)
    second.add_argument("--finetune-learning-rate", **real)
    second.add_argument("--lora-rank", **number)


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help=".safetensors, .bin or .pt")
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="FILE",
        help=".safetensors, .bin or .pt",
    )
    parser.add_argument("--placeholder", metavar="NAME", help="a new name")
    parser.add_argument("--category", metavar="WORD", help="what it is a kind of")


def _add_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("-m", "--model", help="also compare it with this model's vocabulary")


def run_learn(args: argparse.Namespace) -> int:
    from accelerate import Accelerator

    import t2iedit
    from t2iedit_context.learning import learn
    from t2iedit_context.loop import LearningInterrupted

    settings = _settings(args)
    accelerator = Accelerator()
    device = args.device or (accelerator.device if accelerator.num_processes > 1 else None)
    model = t2iedit.open_model(args.model, device=device, dtype="float32")
    advance, close = _bar(accelerator.is_main_process)
    try:
        learned = learn(
            model,
            args.images,
            settings,
            args.output,
            resume=args.resume,
            skip_broken=args.skip_broken,
            previews=args.previews,
            save_every=args.save_every,
            on_step=advance,
        )
    except LearningInterrupted as stopped:
        close()
        print(f"t2iedit: {stopped}; add --resume to the same command", file=sys.stderr)
        return 130
    finally:
        close()
    if accelerator.is_main_process:
        for note in learned.notes:
            print(f"t2iedit: note: {note}", file=sys.stderr)
        made = [args.output, *([str(learned.unet)] if learned.unet else [])]
        _print({"files": made, "report": learned.report} if args.json else None, made)
    return 0


def run_convert(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from t2iedit_context.embeddings import read_concept, write_concept

    concept = read_concept(args.file, args.placeholder)
    if args.category is not None:
        concept = replace(concept, category=args.category)
    write_concept(concept, Path(args.output))
    _print({"files": [args.output]} if args.json else None, [args.output])
    return 0


def run_show(args: argparse.Namespace) -> int:
    from t2iedit_context.diagnostics import described
    from t2iedit_context.embeddings import check_concepts, read_concept

    concept = read_concept(args.file)
    facts: dict[str, Any] = {
        "placeholder": concept.placeholder,
        "category": concept.category,
        "vectors": {name: list(value.shape) for name, value in concept.vectors.items()},
        "made": {key: value for key, value in concept.made.items() if key != "encoders"},
    }
    if args.model:
        import t2iedit

        model = t2iedit.open_model(args.model)
        check_concepts([concept], model)
        facts |= {e.name: described(e, concept.for_encoder(e)) for e in model.encoders}
    _print(
        facts if args.json else None,
        [f"{key}: {value}" for key, value in facts.items()],
    )
    return 0


def _settings(args: argparse.Namespace) -> Any:
    from t2iedit_context.prompts import read_prompts
    from t2iedit_context.settings import PRESETS, Settings, preset_for

    for flag, value, least in (
        ("--previews", args.previews, 0),
        ("--save-every", args.save_every, 1),
    ):
        if value < least:
            raise UserError(f"{flag} {value}: at least {least} is needed")
    values = dict(PRESETS[args.preset or preset_for(args.model)])
    typed = {key: getattr(args, key, None) for key in Settings.model_fields}
    values |= {key: value for key, value in typed.items() if value is not None}
    if args.prompts is not None:
        values["prompts"] = read_prompts(args.prompts)
    if args.rescale is not None:
        values["rescale"] = _rescale(args.rescale)
    return Settings(**values)


def _rescale(text: str) -> tuple[int, int]:
    first, dots, last = text.partition("..")
    if not (dots and first.isdecimal() and last.isdecimal()):
        raise UserError(f"--rescale {text}: write two steps like 120..180, or 0..0 for none")
    return int(first), int(last)


def _bar(shown: bool) -> tuple[Any, Any]:
    """A progress bar for each stage, with the losses; its own estimate of the time left."""
    from tqdm import tqdm

    bars: dict[str, Any] = {}

    def close() -> None:
        for bar in bars.values():
            bar.close()

    def advance(progress: Any) -> None:
        if progress.stage not in bars:
            bars[progress.stage] = tqdm(
                total=progress.steps,
                initial=progress.step - 1,
                desc=progress.stage,
                unit="step",
                disable=None if shown else True,
            )
        bar = bars[progress.stage]
        bar.set_postfix({name: f"{value:.3g}" for name, value in progress.losses.items()})
        bar.update(1)

    return advance, close


def _print(value: Any, lines: list[str]) -> None:
    if value is not None:
        print(json.dumps(value, indent=2, ensure_ascii=False))
    else:
        print("\n".join(lines))
