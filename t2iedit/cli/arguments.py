"""What several commands share: how prompts, edits, seeds and sizes are typed."""

import argparse
import json
import types
import typing
from typing import TYPE_CHECKING, Any

from t2iedit.errors import InvalidOptions, InvalidRequest

if TYPE_CHECKING:
    from t2iedit.edit import Edit
    from t2iedit.sweeps import Sweep


def add_request_arguments(parser: argparse.ArgumentParser, *, prompt_optional: bool | None) -> None:
    """`prompt_optional` None means that there is none."""
    add_text_arguments(parser, prompt_optional=prompt_optional)
    seeds = parser.add_mutually_exclusive_group()
    seeds.add_argument("--seed", metavar="N", help="default 0")
    seeds.add_argument("--seeds", metavar="A..B", help="one image each; B is included")
    parser.add_argument("--steps", type=int, metavar="N", help="denoising steps")
    parser.add_argument(
        "--scheduler", metavar="NAME", help="euler_a, dpmpp_2m_karras, ... or a class of diffusers"
    )
    parser.add_argument("--size", metavar="WxH", help="in pixels")
    parser.add_argument(
        "--batch-size", type=int, default=1, metavar="N", help="images per denoiser call"
    )


def add_text_arguments(parser: argparse.ArgumentParser, *, prompt_optional: bool | None) -> None:
    """What decides what the denoiser is told."""
    if prompt_optional is not None:
        parser.add_argument(
            "prompt",
            nargs="?" if prompt_optional else None,
            help="before the first -e, or after --",
        )
    parser.add_argument(
        "-m", "--model", help='a diffusers folder or hub id; default "shapes", which is bundled'
    )
    parser.add_argument("--negative", metavar="TEXT", help="what guidance leads away from")
    parser.add_argument(
        "-e",
        "--edit",
        nargs="+",
        action="append",
        default=[],
        dest="edits",
        metavar=("NAME", "KEY=VALUE"),
        help="an edit and its options; repeatable, applied in order",
    )
    if prompt_optional:
        parser.add_argument(
            "--conditioning",
            metavar="FILE",
            help="start from what t2iedit encode wrote; edits come on top",
        )
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        dest="loras",
        metavar="FILE[:SCALE]",
        help="a LoRA of diffusers or kohya; repeatable",
    )
    parser.add_argument("--guidance", type=float, metavar="G", help="guidance scale")
    parser.add_argument(
        "--syntax",
        metavar="SYNTAX",
        help="how prompts are read: plain, windows, a1111 or compel",
    )
    parser.add_argument(
        "--weights", metavar="READING", help="what a weight means: a1111, a1111_no_norm or compel"
    )
    for flag, what in (("--prompt-for", "prompt"), ("--negative-for", "negative prompt")):
        parser.add_argument(
            flag,
            action="append",
            default=[],
            metavar="ENCODER=TEXT",
            help=f"a {what} of its own for one encoder, clip_g for instance",
        )
    parser.add_argument("--clip-skip", type=int, metavar="N", help="CLIP layers to leave out")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16")
    parser.add_argument(
        "--offload",
        choices=("model", "sequential"),
        help="keep weights off the GPU while they are not needed",
    )


def request_values(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments as `Request` takes them, without those left out."""
    if getattr(args, "batch_size", 1) < 1:
        raise InvalidRequest(f"--batch-size {args.batch_size}: at least 1 image per call is needed")
    typed = vars(args)
    values = {
        "prompt": typed.get("prompt"),
        "negative": args.negative,
        "model": args.model,
        "conditioning": typed.get("conditioning"),
        "syntax": args.syntax,
        "weights": args.weights,
        "prompts": _by_encoder(args.prompt_for, "--prompt-for"),
        "negatives": _by_encoder(args.negative_for, "--negative-for"),
        "scheduler": typed.get("scheduler"),
        "clip_skip": args.clip_skip,
        "seeds": _seeds(typed),
        "steps": typed.get("steps"),
        "guidance_scale": args.guidance,
        "size": _size(typed),
        "dtype": args.dtype,
        "loras": args.loras or None,
        "edits": [parse_edit(words) for words in args.edits] or None,
    }
    return {key: value for key, value in values.items() if value is not None}


def _by_encoder(words: list[str], flag: str) -> dict[str, str] | None:
    """`clip_g=a cat` as {"clip_g": "a cat"}."""
    pairs = [word.partition("=") for word in words]
    for name, equals, _ in pairs:
        if not equals:
            raise InvalidRequest(f'{flag} {name}: write ENCODER=TEXT, like {flag} clip_g="a cat"')
    return {name: text for name, _, text in pairs} or None


def _seeds(typed: dict[str, Any]) -> tuple[int, ...] | None:
    from t2iedit.request import parse_seed, parse_seeds

    if typed.get("seed") is not None:
        return (parse_seed(typed["seed"], "--seed"),)
    return None if typed.get("seeds") is None else parse_seeds(typed["seeds"], "--seeds")


def _size(typed: dict[str, Any]) -> tuple[int, int] | None:
    from t2iedit.request import parse_size

    return None if typed.get("size") is None else parse_size(typed["size"], "--size")


def parse_edit(words: list[str]) -> "Edit":
    """`NAME KEY=VALUE ...` as an edit. Raises `UnknownEdit` and `InvalidOptions`."""
    from t2iedit.plugins import installed

    name, *settings = words
    edit = installed().edit(name)
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise InvalidOptions(
                f'"{setting}" after -e {name} is not KEY=VALUE; put the prompt before the first -e, or after --'
            )
        known = edit.Options.model_fields.get(key)
        _add(values, name, key, value, is_list=known is not None and _is_list(known.annotation))
    return edit(**values)


def split_sweeps(edits: list[list[str]]) -> "tuple[list[list[str]], list[Sweep]]":
    """Numeric options typed as ranges (`alpha=0..1..0.25`) as sweeps, their first value left in their place."""
    from t2iedit.plugins import installed
    from t2iedit.sweeps import Sweep, swept_values

    plain, sweeps = [], []
    for number, (name, *settings) in enumerate(edits):
        fields = installed().edit(name).Options.model_fields
        words = [name]
        for setting in settings:
            key, _, value = setting.partition("=")
            numeric = key in fields and _is_number(fields[key].annotation)
            values = swept_values(value) if numeric else None
            if values is not None:
                sweeps.append(Sweep(number, key, values))
                setting = f"{key}={values[0]}"
            words.append(setting)
        plain.append(words)
    return plain, sweeps


def _add(values: dict[str, Any], name: str, key: str, value: str, *, is_list: bool) -> None:
    if is_list:
        values[key] = [*values.get(key, []), *_items(value, f"{name} {key}")]
    elif key in values:
        raise InvalidOptions(f"{name} takes {key} once; it was given twice")
    else:
        values[key] = value


def _items(value: str, option: str) -> list[Any]:
    """A JSON array, or the parts between commas."""
    if not value.lstrip().startswith("["):
        return [part.strip() for part in value.split(",")]
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise InvalidOptions(
            f'{option}: {value[:200]} is not a JSON array ({error}); write a,b or ["a", "b"]'
        ) from error


def _is_number(annotation: Any) -> bool:
    options = typing.get_args(annotation) or (annotation,)
    return any(option in (int, float) for option in options)


def _is_list(annotation: Any) -> bool:
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(_is_list(option) for option in typing.get_args(annotation))
    return origin in (list, tuple)
