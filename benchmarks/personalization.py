"""CoRe against plain textual inversion, on concepts that the bundled model has never seen.

    python benchmarks/personalization.py [-m MODEL] [--choice FILE] [--quick] [--minutes N] [--clip MODEL] [-o FILE.json]

New shapes and new textures, five pictures of one colour on white each, are learned by every variant with the same steps,
batches and noise: the vectors, then all of the denoiser, as the paper has its two stages. Prompts then ask for them in
other colours, on other backgrounds and beside other objects.

- identity: how like the concept the most similar object is, by the detector's template match (shapes) or by the
  correlation of the paint with the texture (textures), 1 being perfect; "identified" asks that it is clearly that.
- followed: the share of what the prompt asks for besides the concept that the detector finds; "right" asks for all of it
  and that the concept is identified.
- CLIP-T, CLIP-I: the literature's scores (personalization_clip.py).
- cost: seconds of a step over those of plain inversion, measured in turns (personalization_cost.py).

Around the variants stand a floor, the category's word in the concept's place, and a ceiling, the scenes asked for drawn and
passed through the autoencoder. Differences from plain inversion are paired, prompt by prompt and seed by seed, and their
95 % intervals are bootstrapped over concepts. Settings are the preset "shapes" of `t2iedit core learn`, tuned on other
concepts (personalization_tuning.py), or what that tuning has just chosen, given as --choice.

Every variant of a concept is a piece of its own under --work, made by --workers processes. A run that was stopped goes on
with the pieces that are missing, and where time ran out the rows are of the concepts that have all of them, as n says.
"""

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from personalization_choice import read_choice
from personalization_clip import STEPS as CLIP_STEPS
from personalization_clip import Clip, of_the_world, pretrained
from personalization_concepts import REPORTED, TUNING, Unknown, pictures_of, teach_renderer
from personalization_cost import PLAIN, cost_rows
from personalization_pieces import (
    CEILING,
    FITTED,
    FLOOR,
    STAGES,
    Job,
    Piece,
    Place,
    begun,
    finished,
    pool_of,
)
from personalization_referee import Seen

import t2iedit
from t2iedit.cli.terminal import silence_libraries
from t2iedit.shapes.evaluate import Row
from t2iedit.shapes.scoring import wilson

RESULTS = Path(__file__).parent / "results"
VARIANTS: dict[str, dict[str, Any]] = {
    PLAIN: {"embedding_weight": 0.0, "attention_weight": 0.0},
    "without CER": {"embedding_weight": 0.0},
    "without CAR": {"attention_weight": 0.0},
    "without rescaling": {"rescale": (0, 0)},
    "full": {},
}
SHOWN = ("picture", FLOOR, PLAIN, "full", FITTED)


def main() -> None:
    options = _options()
    silence_libraries()
    teach_renderer()
    model = t2iedit.open_model(options.model, device=options.device, dtype="float32")
    concepts = REPORTED[:: len(REPORTED) - 1] if options.quick else REPORTED
    choice = read_choice(options.choice)
    jobs = jobs_of(concepts, choice.settings, options)
    own = f" with {choice.settings}" if choice.settings else ""
    print(f'every row: preset "shapes"{own}, tuned on {", ".join(u.name for u in TUNING)}')
    print_rows(rows := cost_rows(model, REPORTED[0], 3 if options.quick else 20))
    with pool_of(options.workers) as pool:
        waiting = begun(pool, jobs, place_of(options))
        # The picture tower is trained while the others learn.
        clip = clip_of(model, options)
        made = finished(waiting)
    concepts, pieces = complete(concepts, made, jobs)
    if len(made) < len(jobs):
        told = f"{len(made)} of {len(jobs)} pieces are done, all of {len(concepts)} concepts"
        print(f"{told}; the same command goes on")
    if not pieces:
        return
    found = by_way(pieces)
    print_rows(more := [*rows_of(found, clip), *rows_by_kind(found), *differences(found)])
    stem = options.output or RESULTS / f"personalization{'-quick' if options.quick else ''}.json"
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.write_text(json.dumps([asdict(row) for row in rows + more], indent=1) + "\n")
    t2iedit.save_image(sheet(found, concepts, min(model.defaults.size)), stem.with_suffix(".png"))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_arguments(parser)
    parser.add_argument(
        "--clip", metavar="MODEL", help="a CLIP of transformers; else one is trained"
    )
    return parser.parse_args()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--model", default="shapes")
    parser.add_argument("--seeds", type=int, default=3, help="pictures a prompt")
    parser.add_argument("--choice", type=Path, help="what personalization_tuning.py has chosen")
    parser.add_argument("--quick", action="store_true", help="two concepts, few steps, one seed")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="begin no further piece after so many"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes, each on one thread")
    parser.add_argument("--device")
    parser.add_argument("--work", type=Path, default=Path("out/personalization"))
    parser.add_argument("-o", "--output", type=Path, help="JSON; a picture lies beside it")


def jobs_of(
    concepts: Sequence[Unknown], chosen: dict[str, Any], options: argparse.Namespace
) -> list[Job]:
    """Floor and ceiling of each concept, and each variant's learning, concept by concept."""
    short = {"steps": 8, "rescale": (3, 5), "finetune_steps": 8} if options.quick else {}
    common = Job(FLOOR, concepts[0], {}, 1 if options.quick else options.seeds, options.quick)
    learned = {name: chosen | short | own for name, own in VARIANTS.items()}
    ways = {FLOOR: {}, CEILING: {}} | learned
    return [
        replace(common, name=name, unknown=unknown, own=own)
        for unknown in concepts
        for name, own in ways.items()
    ]


def place_of(options: argparse.Namespace) -> Place:
    until = time.time() + 60 * options.minutes
    return Place(options.work, options.model, options.device, until)


def complete(
    concepts: Sequence[Unknown], pieces: Sequence[Piece], jobs: Sequence[Job]
) -> tuple[list[Unknown], list[Piece]]:
    """The concepts that have all their pieces, and these: every row is then of the same concepts."""
    done, wanted = (
        Counter(job.unknown for job in some) for some in ([p.job for p in pieces], jobs)
    )
    whole = [unknown for unknown in concepts if done[unknown] == wanted[unknown]]
    return whole, [piece for piece in pieces if piece.job.unknown in whole]


Found = dict[tuple[str, str], list[Piece]]
"""Pieces by what was done and after which stage, in the order of the concepts."""


def by_way(pieces: Sequence[Piece]) -> Found:
    found: Found = {}
    for piece in pieces:
        for way, stage in piece.seen:
            found.setdefault((way, stage), []).append(piece)
    return found


def rows_of(found: Found, clip: Clip) -> Iterator[Row]:
    if clip.accuracy is not None:
        yield Row("picture tower", "caption found among 128", 1, *[clip.accuracy] * 3)
    for (way, stage), pieces in found.items():
        metric = _labelled(stage)
        yield from judged(way, metric, [seen for p in pieces for seen in p.seen[way, stage]])
        text, image = _clip_scores(pieces, way, stage, clip)
        yield mean_row(way, metric("CLIP-T"), text)
        yield mean_row(way, metric("CLIP-I"), image)


def rows_by_kind(found: Found) -> Iterator[Row]:
    """New shapes and new textures apart, after both stages."""
    for (way, stage), pieces in found.items():
        if stage == STAGES[0]:
            continue
        for kind in dict.fromkeys(piece.job.unknown.kind for piece in pieces):
            own = [piece for piece in pieces if piece.job.unknown.kind == kind]
            seen = [seen for piece in own for seen in piece.seen[way, stage]]
            yield from judged(f"{way}: {len(own)} {kind}s", str, seen)


def judged(name: str, metric: Callable[[str], str], seen: Sequence[Seen]) -> Iterator[Row]:
    n = len(seen)
    yield mean_row(name, metric("identity"), [item.identity for item in seen])
    for share in ("identified", "right"):
        count = sum(getattr(item, share) for item in seen)
        yield Row(name, metric(share), n, count / n, *wilson(count, n))
    yield mean_row(name, metric("followed"), [item.followed for item in seen])


def _labelled(stage: str) -> Any:
    """Names of metrics; what is measured after both stages, as in the paper, goes without a word."""
    return lambda name: f"{name}, {stage}" if stage == STAGES[0] else name


def _clip_scores(
    pieces: Sequence[Piece], way: str, stage: str, clip: Clip
) -> tuple[list[float], list[float]]:
    """Of pictures with their prompts, the category in the concept's place, and with the pictures learned from."""
    text, image = [], []
    for piece in pieces:
        made = clip.looks(piece.images(way, stage))
        text += (made * clip.words(piece.prompts(piece.job.unknown.category))).sum(-1).tolist()
        image += (made @ clip.looks(pictures_of(piece.job.unknown, 128)).T).mean(-1).tolist()
    return text, image


def differences(found: Found) -> Iterator[Row]:
    """What each variant has more than plain inversion, concept by concept."""
    for (way, stage), pieces in found.items():
        if way in (PLAIN, FLOOR, CEILING):
            continue
        for name in ("identity", "identified", "followed", "right"):
            gains = [
                np.mean([float(getattr(item, name)) for item in mine.seen[way, stage]])
                - np.mean([float(getattr(item, name)) for item in base.seen[PLAIN, stage]])
                for mine, base in zip(pieces, found[PLAIN, stage], strict=True)
            ]
            metric = _labelled(stage)(name)
            yield mean_row(way, f"{metric}, more than plain", [float(gain) for gain in gains])


def mean_row(name: str, metric: str, values: Sequence[float]) -> Row:
    """The mean, with its bootstrapped 95 % interval."""
    random = np.random.default_rng(0)
    means = random.choice(values, (2000, len(values))).mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Row(name, metric, len(values), float(np.mean(values)), float(low), float(high))


def clip_of(model: Any, options: argparse.Namespace) -> Clip:
    if options.clip:
        return pretrained(options.clip)
    return of_the_world(model, options.work, 20 if options.quick else CLIP_STEPS)


def sheet(found: Found, concepts: Sequence[Unknown], size: int) -> Any:
    """Each concept's first prompts under the ways that matter."""
    rows, labels = [], []
    for index, unknown in enumerate(concepts):
        for k in (0, 1):
            pieces = {way: found[way, STAGES[1]][index] for way in SHOWN[1:]}
            painted = [p.images(way, STAGES[1])[k * p.job.seeds] for way, p in pieces.items()]
            rows.append([pictures_of(unknown, size)[k], *painted])
            any_piece = pieces[SHOWN[1]]
            labels.append(any_piece.prompts(unknown.placeholder)[k * any_piece.job.seeds])
    return t2iedit.labelled_grid(rows, list(SHOWN), labels)


def print_rows(rows: Sequence[Row]) -> None:
    for row in rows:
        print(
            f"{row.name:34} {row.metric:36} {row.value:7.3f} ({row.low:.3f} to {row.high:.3f}), n {row.n}"
        )


if __name__ == "__main__":
    main()
