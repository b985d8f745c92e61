"""Which settings of CoRe suit the bundled model, on concepts that no result is reported on.

    python benchmarks/personalization_tuning.py [rates|weights|all] [--choice FILE] [--quick] [--minutes N]

"rates" are of plain inversion, of its vectors and of the denoiser in its second stage: what it takes to learn at all, found
with the baseline, so that no rate favours CoRe. "weights", at the rates chosen, are lambda_emb and lambda_attn, the paper's
and multiples of what makes the terms' gradients felt; plain inversion at the same rates stands in the table before. Each takes its best point by the rule of personalization_choice.py, and the choice is kept in
`results/personalization-choice.json`, which personalization.py takes as --choice; a person copies it into the preset.

What is not tuned stands in the preset "shapes" of `t2iedit core learn`. With --minutes the points that were not made in time
are no candidates; the same command makes them.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from personalization import RESULTS, add_arguments, mean_row, place_of, print_rows
from personalization_choice import Choice, read_choice, scores_of
from personalization_concepts import TUNING, Unknown
from personalization_cost import PLAIN, STEPS
from personalization_pieces import STAGES, Job, Piece, pieces_of

from t2iedit.shapes.evaluate import Row

OFF = STEPS[PLAIN]
Points = dict[str, dict[str, Any]]
POINTS: dict[str, Points] = {
    "rates": {
        f"vectors {rate:g}, denoiser {own:g}": {
            "learning_rate": rate,
            "finetune_learning_rate": own,
        }
        for own in (3e-4, 1e-3)
        for rate in (5e-3, 1e-3)
    },
    "weights": {
        f"CER {e:g}, CAR {a:g}": {"embedding_weight": e, "attention_weight": a}
        for e, a in ((1.5e-4, 0.05), (0.01, 2.0), (0.1, 20.0), (0.5, 100.0))
    },
}
"""The paper's values first, where it has any."""
METRICS = ("identity", "identified", "followed", "right")


def main() -> None:
    options = _options()
    concepts = TUNING[: 2 if options.quick else options.concepts]
    choice, place = read_choice(options.choice), place_of(options)
    rows: list[Row] = []
    whats = list(POINTS) if options.what == "all" else [options.what]
    for number, what in enumerate(whats):
        # The time is shared, or the first table might take all of it.
        share = (place.until - time.time()) / (len(whats) - number)
        jobs = jobs_of(what, choice, concepts, options)
        pieces = pieces_of(jobs, replace(place, until=time.time() + share), options.workers)
        more = [row for n in POINTS[what] for s in STAGES for row in rows_of(pieces, n, s)]
        print_rows(more)
        rows += more
        print(f"{what}: {len(pieces)} of {len(jobs)} pieces are done")
        scores = scores_of(pieces, list(POINTS[what]), len(concepts))
        if not scores:
            print("no point has all concepts yet; the same command goes on")
            return
        choice = choice.with_best(what, POINTS[what], scores)
        print(f"{what}: scores {scores}, so far chosen {choice.settings}")
    _write(rows, choice, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=(*POINTS, "all"), nargs="?", default="all")
    add_arguments(parser)
    parser.add_argument("--concepts", type=int, default=len(TUNING), help="the first so many")
    return parser.parse_args()


def jobs_of(
    what: str, choice: Choice, concepts: Sequence[Unknown], options: argparse.Namespace
) -> list[Job]:
    """Each point on each concept, with what was chosen before; rates are of plain inversion."""
    short = {"steps": 8, "rescale": (3, 5), "finetune_steps": 8} if options.quick else {}
    base = choice.settings | (OFF if what == "rates" else {}) | short
    seeds = 1 if options.quick else options.seeds
    return [
        Job(name, unknown, base | own, seeds, options.quick)
        for name, own in POINTS[what].items()
        for unknown in concepts
    ]


def _write(rows: Sequence[Row], choice: Choice, options: argparse.Namespace) -> None:
    """The choice, and beside it the tables that it was made from."""
    end = "-quick" if options.quick else ""
    path = options.output or RESULTS / f"personalization-choice{end}.json"
    choice.save(path)
    tables = path.with_name(f"personalization-{options.what}{end}.json")
    tables.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def rows_of(pieces: Sequence[Piece], name: str, stage: str) -> list[Row]:
    """A point's means over the tuning concepts."""
    own = [piece.seen[name, stage] for piece in pieces if piece.job.name == name]
    return [
        mean_row(
            name,
            f"{metric}, {stage}, tuning concepts",
            [float(np.mean([float(getattr(item, metric)) for item in seen])) for seen in own],
        )
        for metric in METRICS
        if own
    ]


if __name__ == "__main__":
    main()
