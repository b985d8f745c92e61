"""Which settings of CoRe suit the bundled model, on concepts that no result is reported on.

    python benchmarks/personalization_tuning.py [rates|weights|denoiser] [--quick] [--minutes N]

Each point changes one thing of the preset "shapes" of `t2iedit core learn`. "rates" are of plain inversion: what it takes to
learn at all. "weights" are lambda_emb and lambda_attn, one at a time and together: what keeps prompts followed, and what that
costs in identity. "denoiser" is the second stage. The table is to be read by a person; what was chosen stands in the preset.
"""

import argparse
import json
from dataclasses import asdict
from typing import Any

import numpy as np
from personalization import RESULTS, add_arguments, mean_row, place_of, print_rows
from personalization_concepts import TUNING
from personalization_cost import PLAIN, STEPS
from personalization_pieces import STAGES, Job, Piece, pieces_of

from t2iedit.shapes.evaluate import Row

OFF = STEPS[PLAIN]
POINTS: dict[str, dict[str, dict[str, Any]]] = {
    "rates": {f"plain, rate {rate:g}": OFF | {"learning_rate": rate} for rate in (5e-4, 2e-3, 5e-3, 2e-2)},
    "weights": {PLAIN: OFF}
    | {f"CER {w:g}": {"embedding_weight": w, "attention_weight": 0.0} for w in (1.5e-4, 0.03, 0.1, 0.3)}
    | {f"CAR {w:g}": {"embedding_weight": 0.0, "attention_weight": w} for w in (0.05, 5.0, 20.0, 80.0)}
    | {f"CER {e:g}, CAR {a:g}": {"embedding_weight": e, "attention_weight": a} for e, a in ((0.1, 20.0), (1.0, 200.0))},
    "denoiser": {f"LoRA, rate {rate:g}": OFF | {"finetune_learning_rate": rate} for rate in (3e-4, 1e-3, 2e-3)},
}  # fmt: skip
METRICS = ("identity", "identified", "followed", "right")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=tuple(POINTS), nargs="?", default="weights")
    add_arguments(parser)
    options = parser.parse_args()
    points = POINTS[options.what]
    concepts = TUNING[:2] if options.quick else TUNING
    short = {"steps": 8, "finetune_steps": 8} if options.quick else {}
    jobs = [
        Job(name, unknown, short | own, 1 if options.quick else options.seeds, options.quick)
        for name, own in points.items()
        for unknown in concepts
    ]
    pieces = pieces_of(jobs, place_of(options), options.workers)
    rows = [row for name in points for stage in STAGES for row in rows_of(pieces, name, stage)]
    print_rows(rows)
    if len(pieces) < len(jobs):
        print(f"{len(pieces)} of {len(jobs)} pieces are done; the same command goes on")
        return
    stem = f"personalization-{options.what}{'-quick' if options.quick else ''}"
    path = options.output or RESULTS / f"{stem}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def rows_of(pieces: list[Piece], name: str, stage: str) -> list[Row]:
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
