"""List the installed plugins, those that failed to load included."""

import argparse
import sys
from dataclasses import asdict

from t2iedit.cli.terminal import print_json, print_table, silence_libraries


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if one failed")


def run(args: argparse.Namespace) -> int:
    silence_libraries()
    from t2iedit.plugins import installed

    plugins = installed()
    if args.json:
        print_json([asdict(info) for info in plugins.infos])
    else:
        rows = [
            (info.name, f"{info.distribution} {info.version}", _status(info.edits, info.error))
            for info in plugins.infos
        ]
        print_table([("PLUGIN", "FROM", "EDITS"), *rows])
    if args.strict and plugins.failed:
        names = ", ".join(f"{info.name} of {info.distribution}" for info in plugins.failed)
        print(f"t2iedit: failed to load: {names}", file=sys.stderr)
        return 1
    return 0


def _status(edits: tuple[str, ...], error: str | None) -> str:
    return f"FAILED: {error}" if error is not None else ", ".join(edits) or "(none)"
