"""The command line; a command's module imports what is heavy only when it runs."""

import argparse
import sys
from importlib import import_module
from typing import NoReturn

COMMANDS = {
    "generate": "make images from a prompt and its edits",
    "compare": "one prompt without, with each and with all edits, as a labelled grid",
    "edits": "list the installed edits, or one edit's options",
    "plugins": "list the installed plugins, failed ones included",
    "doctor": "say what this machine has and what that means",
}
INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """Reports a mistake as one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"t2iedit: {message}\n")


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code is 0, 1 when it failed, 2 for what the user got wrong."""
    args = parser().parse_args(argv)
    if args.debug:
        return args.run(args)
    return _guarded(args)


def parser() -> Parser:
    root = Parser(
        prog="t2iedit",
        description="Edit the text embeddings of text-to-image models.",
        allow_abbrev=False,
    )
    root.add_argument("--version", action="version", version=_version())
    commands = root.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        module = import_module(f"t2iedit.cli.{name}")
        command = commands.add_parser(
            name, help=summary, description=module.__doc__, allow_abbrev=False
        )
        command.add_argument("--debug", action="store_true", help="show tracebacks")
        command.set_defaults(run=module.run)
        module.add_arguments(command)
    return root


def _guarded(args: argparse.Namespace) -> int:
    from t2iedit.errors import UserError

    try:
        return args.run(args)
    except UserError as error:
        return _fail(str(error), 2)
    except KeyboardInterrupt:
        return _fail("interrupted; finished images are kept", INTERRUPTED)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        return _fail(f"failed: {reason} (--debug shows where)", 1)


def _fail(sentence: str, code: int) -> int:
    print(f"t2iedit: {sentence}", file=sys.stderr)
    return code


def _version() -> str:
    from t2iedit import __version__

    return f"t2iedit {__version__}"
