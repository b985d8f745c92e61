"""What several commands share: how prompts, edits, seeds and sizes are typed."""

import argparse
import json
import re
import types
import typing
from typing import TYPE_CHECKING, Any

from t2iedit.errors import InvalidOptions, InvalidRequest

if TYPE_CHECKING:
    from t2iedit.edit import Edit

MAX_IMAGES = 100_000


def add_request_arguments(parser: argparse.ArgumentParser, *, prompt_optional: bool) -> None:
    add_text_arguments(parser, prompt_optional=prompt_optional)
    seeds = parser.add_mutually_exclusive_group()
    seeds.add_argument("--seed", metavar="N", help="default 0")
    seeds.add_argument("--seeds", metavar="A..B", help="one image each; B is included")
    parser.add_argument("--steps", type=int, metavar="N", help="denoising steps")
    parser.add_argument("--size", metavar="WxH", help="in pixels")
    parser.add_argument(
        "--batch-size", type=int, default=1, metavar="N", help="images per denoiser call"
    )


def add_text_arguments(parser: argparse.ArgumentParser, *, prompt_optional: bool) -> None:
    """What decides what the denoiser is told."""
    parser.add_argument(
        "prompt", nargs="?" if prompt_optional else None, help="before the first -e, or after --"
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
    parser.add_argument("--guidance", type=float, metavar="G", help="guidance scale")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16")


def request_values(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments as `Request` takes them, without those left out."""
    if getattr(args, "batch_size", 1) < 1:
        raise InvalidRequest(f"--batch-size {args.batch_size}: at least 1 image per call is needed")
    typed = vars(args)
    values = {
        "prompt": args.prompt,
        "negative": args.negative,
        "model": args.model,
        "conditioning": typed.get("conditioning"),
        "seeds": parse_seeds(typed.get("seed"), typed.get("seeds")),
        "steps": typed.get("steps"),
        "guidance_scale": args.guidance,
        "size": parse_size(typed.get("size")),
        "dtype": args.dtype,
        "edits": [parse_edit(words) for words in args.edits] or None,
    }
    return {key: value for key, value in values.items() if value is not None}


def parse_seeds(seed: str | None, seeds: str | None) -> tuple[int, ...] | None:
    """`7`, `0..7` (inclusive) or `1,5,9`."""
    if seed is not None:
        return (_whole(seed, "--seed"),)
    if seeds is None:
        return None
    found = re.fullmatch(r"(\d+)\.\.(\d+)", seeds.strip())
    if found is None:
        return tuple(_whole(part, "--seeds") for part in seeds.split(","))
    first, last = int(found[1]), int(found[2])
    if last < first:
        raise InvalidRequest(f"--seeds {seeds} is empty; write the smaller seed first")
    if last - first >= MAX_IMAGES:
        raise InvalidRequest(f"--seeds {seeds} asks for more than {MAX_IMAGES} images at once")
    return tuple(range(first, last + 1))


def parse_size(text: str | None) -> tuple[int, int] | None:
    """`640x480` as (640, 480)."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,6})x(\d{1,6})", text.strip().lower())
    if found is None:
        raise InvalidRequest(f"--size {text}: write width x height in pixels, like 512x512")
    return int(found[1]), int(found[2])


def parse_edit(words: list[str]) -> "Edit":
    """`NAME KEY=VALUE ...` as an edit. Raises `UnknownEdit` and `InvalidOptions`."""
    from t2iedit.plugins import installed

    name, *settings = words
    edit = installed().edit(name)
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise InvalidOptions(
                f'"{setting}" after -e {name} is not KEY=VALUE; put the prompt before the first -e, or after --'
            )
        known = edit.Options.model_fields.get(key)
        _add(values, name, key, value, is_list=known is not None and _is_list(known.annotation))
    return edit(**values)


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
    except ValueError as error:
        raise InvalidOptions(
            f'{option}: {value} is not a JSON array ({error}); write a,b or ["a", "b"]'
        ) from error


def _is_list(annotation: Any) -> bool:
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(_is_list(option) for option in typing.get_args(annotation))
    return origin in (list, tuple)


def _whole(text: str, flag: str) -> int:
    if not re.fullmatch(r"\d{1,19}", text.strip()):
        raise InvalidRequest(
            f"{flag} {text}: a seed is a whole number, a range 0..7 or a list 1,5,9"
        )
    return int(text)
