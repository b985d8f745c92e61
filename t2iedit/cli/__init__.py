"""The command line; a command's module imports what is heavy only when it runs."""

import argparse
import os
import select
import sys
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NoReturn

from t2iedit.cli.terminal import silence_libraries

COMMANDS = {
    "generate": "make images from a prompt and its edits",
    "encode": "encode a prompt and its edits into a file, for generate --conditioning",
    "batch": "many requests from a file into a folder, resumable",
    "compare": "one prompt without, with each and with all edits, as a labelled grid",
    "inspect": "what the edits do to a prompt: tokens, norms, similarities",
    "prompts": "sets of prompts, and their pictures as GenEval and T2I-CompBench read them",
    "edits": "list the installed edits, or one edit's options",
    "plugins": "list the installed plugins, failed ones included",
    "doctor": "say what this machine has and what that means",
}
PLUGINS_COMMANDS = "t2iedit.commands"
"""Entry points here are functions that add a command's arguments to its parser and set its `run`."""
INTERRUPTED = 130
READER_GONE = 141
"""What shells report for a command whose reader, `head` for instance, closed the pipe."""


class Parser(argparse.ArgumentParser):
    """Reports a mistake as one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"t2iedit: {message}\n")


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code is 0, 1 when it failed, 2 for what the user got wrong."""
    words = sys.argv[1:] if argv is None else argv
    try:
        args = parser(words[0] if words else "").parse_args(words)
        if words[0] not in COMMANDS:
            silence_libraries()
        return args.run(args) if args.debug else _guarded(args)
    except KeyboardInterrupt:
        return _fail("interrupted; what was finished is kept", INTERRUPTED)


def parser(typed: str = "") -> Parser:
    """All commands; of those that plugins bring, only the typed one is imported."""
    root = Parser(
        prog="t2iedit",
        description="Edit the text embeddings of text-to-image models.",
        allow_abbrev=False,
    )
    root.add_argument("--version", action="version", version=_version())
    commands = root.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        module = import_module(f"t2iedit.cli.{name}")
        command = _command(commands, name, help=summary, description=module.__doc__)
        command.set_defaults(run=module.run)
        module.add_arguments(command)
    for name, entries in _brought().items():
        command = _command(commands, name, help=" and ".join(map(_origin, entries)))
        if name == typed:
            _add_plugins_arguments(name, entries, command)
    return root


def _command(commands: Any, name: str, **described: Any) -> argparse.ArgumentParser:
    command = commands.add_parser(name, allow_abbrev=False, **described)
    command.add_argument("--debug", action="store_true", help="show tracebacks")
    return command


def _brought() -> dict[str, list[EntryPoint]]:
    """The commands of plugins by name, with every plugin that brings one; built-in names stay built in."""
    found: dict[str, list[EntryPoint]] = {}
    for entry in sorted(entry_points(group=PLUGINS_COMMANDS), key=lambda e: (e.name, _origin(e))):
        if entry.name not in COMMANDS:
            found.setdefault(entry.name, []).append(entry)
    return found


def _add_plugins_arguments(
    name: str, entries: list[EntryPoint], command: argparse.ArgumentParser
) -> None:
    entry, *others = entries
    if others:
        origins = " and ".join(map(_origin, entries))
        sys.exit(_fail(f'several plugins bring the command "{name}", {origins}; keep one', 1))
    try:
        entry.load()(command)
    # A plugin's import may do anything, so whatever it raises is that plugin's failure.
    except (Exception, SystemExit) as error:
        sys.exit(_fail(f'the command "{entry.name}", {_origin(entry)}, failed to load: {error}', 1))


def _origin(entry: EntryPoint) -> str:
    return f"from {entry.dist.name} {entry.dist.version}" if entry.dist else "from a plugin"


def _guarded(args: argparse.Namespace) -> int:
    from t2iedit.errors import UserError, said

    try:
        code = args.run(args)
        print(end="", flush=True)
        return code
    except UserError as error:
        return _fail(str(error), 2)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_gone():
            return READER_GONE
        return _fail(f"failed: {said(error, 1000)} (--debug shows where)", 1)


def _reader_gone() -> bool:
    """Whether nobody reads our output any more; what is left of it then goes nowhere, without complaint."""
    pipe = select.poll()
    pipe.register(sys.stdout.fileno(), 0)
    if not pipe.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _fail(sentence: str, code: int) -> int:
    print(f"t2iedit: {sentence}", file=sys.stderr)
    return code


def _version() -> str:
    from t2iedit import __version__

    return f"t2iedit {__version__}"
