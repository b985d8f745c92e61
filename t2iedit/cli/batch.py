"""Many requests from a file into a folder: JSON lines, CSV or plain prompts; a batch that was stopped goes on."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2iedit.cli.arguments import add_request_arguments, request_values
from t2iedit.cli.outputs import check_writable
from t2iedit.cli.terminal import print_json, silence_libraries
from t2iedit.errors import InvalidRequest

if TYPE_CHECKING:
    from t2iedit.batch import Engine, Plan
    from t2iedit.painters import Made, Setup


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("requests", metavar="REQUESTS", help="a .jsonl, .csv or .txt file")
    add_request_arguments(parser, prompt_optional=None)
    parser.add_argument("-o", "--output", metavar="DIR", required=True, help="where images go")
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="models at work at once"
    )
    parser.add_argument(
        "--threads", type=int, metavar="N", help="of each worker; default its share of the cores"
    )
    parser.add_argument("--engine", choices=("local", "ray"), default="local")
    parser.add_argument("--address", metavar="A", help="the Ray cluster, for instance auto")
    parser.add_argument("--dry-run", action="store_true", help="check every line, paint nothing")
    parser.add_argument("--json", action="store_true", help="print a summary as JSON")


def run(args: argparse.Namespace) -> int:
    _check(args)
    silence_libraries()
    from t2iedit import batch
    from t2iedit.painters import Setup
    from t2iedit.request_files import read_lines

    defaults = request_values(args)
    check_writable(Path(args.output))
    setup = Setup(args.device, args.offload, args.threads)
    if args.dry_run:
        plan = batch.plan(read_lines(args.requests, defaults), None)
        _check_tasks(plan, setup)
        return _summary(args, plan, plan.images, len(plan.errors))
    with batch.Folder(args.output).held() as folder:
        plan = batch.plan(read_lines(args.requests, defaults), folder)
        setup = replace(setup, fingerprints=folder.fingerprints)
        say, close = _speaker(plan, quiet=args.json)
        try:
            made, failed = batch.run(plan, folder, _engine(args), setup, say)
        finally:
            close()
    return _summary(args, plan, made, failed)


def _check(args: argparse.Namespace) -> None:
    for flag, number in (("--workers", args.workers), ("--threads", args.threads)):
        if number is not None and number < 1:
            raise InvalidRequest(f"{flag} {number}: at least 1 is needed")
    if not args.output.strip():
        raise InvalidRequest("-o is empty; give the folder that the images belong in")
    if args.batch_size != 1:
        raise InvalidRequest(
            "batch paints one image per call, so that each equals its seed alone; leave out --batch-size"
        )
    if args.address is not None and args.engine != "ray":
        raise InvalidRequest("--address names a Ray cluster; give --engine ray with it")


def _engine(args: argparse.Namespace) -> "Engine":
    if args.engine == "ray":
        from t2iedit.ray_engine import on_ray

        return on_ray(args.workers, args.address)
    if args.workers > 1:
        from t2iedit.workers import processes

        return processes(args.workers)
    from t2iedit.batch import in_process

    return in_process


def _check_tasks(plan: "Plan", setup: "Setup") -> None:
    """Every line against its model; those that could not be painted join the plan's errors."""
    from t2iedit.painters import Painter

    painter = Painter(setup)
    for task in {task.line: task for task in plan.tasks}.values():
        error = painter.check(task)
        if error is not None:
            plan.errors[task.line] = error
    plan.tasks = [task for task in plan.tasks if task.line not in plan.errors]
    for line, error in sorted(plan.errors.items()):
        _complain(line, error)


def _speaker(plan: "Plan", *, quiet: bool) -> Any:
    from tqdm import tqdm

    bar = tqdm(total=plan.images, delay=1, disable=None, leave=False, unit="image")

    def say(made: "Made", path: Path | None) -> None:
        bar.update(made.seed is not None)
        if path is None:
            # Told once for a line of many seeds.
            if plan.errors.get(made.line) != made.error or made.seed is None:
                _complain(made.line, made.error or "")
            plan.errors[made.line] = made.error or ""
            return
        if not quiet:
            print(path, flush=True)

    return say, bar.close


def _complain(line: int, error: str) -> None:
    print(f"t2iedit: line {line}: {error}", file=sys.stderr, flush=True)


def _summary(args: argparse.Namespace, plan: "Plan", images: int, failed: int) -> int:
    facts = {"images": images, "already there": plan.done, "failed": failed}
    if args.json:
        print_json(facts | {"errors": {str(k): v for k, v in sorted(plan.errors.items())}})
    else:
        done = "could be made" if args.dry_run else "made"
        print(
            f"t2iedit: {images} images {done}, {plan.done} were there already, {failed} failures",
            file=sys.stderr,
        )
    return 1 if failed else 0
