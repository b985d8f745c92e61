"""Prompts for real models, and their pictures laid out for GenEval's and T2I-CompBench's scorers.

write: NAME.txt for `t2iedit batch`, and NAME.jsonl that says what each prompt asks for.
layout: the pictures of a batch's folder as a scorer reads them; the prompts may be the scorer's own.
"""

import argparse

SETS = ("objects", "two-objects", "counts", "colours", "colour-pairs", "colour-triples", "shapes")
SCORERS = ("geneval", "compbench")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    verbs = parser.add_subparsers(title="commands", metavar="VERB", dest="verb", required=True)
    write = verbs.add_parser("write", help="a set of prompts into a .txt and a .jsonl file")
    write.add_argument("set", metavar="SET", choices=SETS, help=", ".join(SETS))
    write.add_argument("-n", type=int, default=100, help="how many prompts; default 100")
    write.add_argument("--seed", type=int, default=0, help="chooses them")
    _add_scorer(write, default="geneval")
    write.add_argument("-o", "--output", metavar="NAME", required=True, help="NAME.txt, NAME.jsonl")
    layout = verbs.add_parser("layout", help="the pictures of a batch for a scorer")
    layout.add_argument("prompts", metavar="PROMPTS", help="the .jsonl or .txt file of prompts")
    layout.add_argument("pictures", metavar="DIR", help="the folder that t2iedit batch painted")
    _add_scorer(layout, default=None)
    layout.add_argument("-o", "--output", metavar="NEW", required=True, help="the folder to make")


def _add_scorer(parser: argparse.ArgumentParser, default: str | None) -> None:
    parser.add_argument(
        "--for",
        dest="scorer",
        choices=SCORERS,
        default=default,
        required=default is None,
        help="whose wording or layout" + (f"; default {default}" if default else ""),
    )


def run(args: argparse.Namespace) -> int:
    from t2iedit.layouts import lay_out, painted
    from t2iedit.prompts import OPENING, prompt_set, read_prompts, write_prompts

    if args.verb == "write":
        opening = OPENING if args.scorer == "geneval" else ""
        made = prompt_set(args.set, args.n, args.seed, opening=opening)
        print(*write_prompts(made, args.output), sep="\n")
    else:
        pictures, asked = painted(args.pictures), read_prompts(args.prompts)
        print(lay_out(pictures, asked, args.output, args.scorer))
    return 0
