"""Does DECOR keep what an over-fitted LoRA learned besides out of other pictures? Against what people do today.

    python benchmarks/leakage.py tune [--quick]       which rows span and which are edited, on LoRAs of their own; a quarter of an hour
    python benchmarks/leakage.py [report] [--quick]   with the rows chosen; half an hour

LoRAs are over-fitted on four pictures each: of one style with the same object in all of them, or of one unknown shape in
one colour on white, under a caption that names the style or the shape alone. Prompts then ask for the style of another
object, or for the shape in other colours and on other grounds. Of each picture:

- leaked: it shows what all pictures shared and the prompt does not ask for (the object or its colour; the ground).
- followed: it shows what the prompt asks for besides.
- kept: it has the style, or an object of the shape.

Ways: the LoRA at scales from 0 to 1, DECOR with what leaks as the undesired prompts at strengths from 0 to 1, and the
same words as the negative prompt. `mixed` has two LoRAs at once, each to give only its half. All ways paint prompt k from
the same noise, and intervals are 95 %, of differences bootstrapped over prompts.

    python benchmarks/leakage.py -m MODEL --clip CLIP    any other checkpoint: LoRAs of it, on the same drawn pictures

How far a LoRA is over-fitted decides what can leak and what can be rescued, so there are two kinds: `--overfit hard`, the
default, of attention and convolutions, and `--overfit gentle`, of attention alone at a quarter of the rate.

With `--clip`, a CLIP model of transformers, CLIP-T to the prompt and CLIP-I to the four pictures are printed too.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from cases import REPORTED, TUNED, Case, Mixed, Seen, pictures_of, tasks_of
from common import RESULTS, mean, paired, save, share, show
from fronts import DECOR, MEASURES, NEGATIVE, PLAIN, SCALE, area_gain, chart
from overfit import Training, overfit
from PIL import Image
from referees import picture
from studio import Studio

import t2iedit
from t2iedit import digests
from t2iedit.cli.terminal import silence_libraries
from t2iedit.errors import UserError
from t2iedit.plots import labelled_grid
from t2iedit.plugins import installed
from t2iedit.shapes.tasks import Task

TRAININGS = {
    "hard": Training(),
    "gentle": Training(rank=8, learning_rate=1e-3, convolutions=False),
}
SEED = 30_001
STEPS = 10
"""Of a picture by the bundled model, which gains nothing from more (`composition-choice.json`)."""
STRENGTHS = (0.25, 0.5, 0.75, 1.0)
SCALES = (0.0, 0.25, 0.5, 0.75)
READINGS: list[dict[str, Any]] = [
    {},
    {"span": "words+eot"},
    {"span": "words+eot+pad"},
    {"rows": "words"},
    {"centre": True},
    {"soft": 0.1},
    {"rank": 1},
]


@dataclass(frozen=True)
class Way:
    """The LoRAs at one scale, and what is done against their leaking."""

    name: str
    loras: tuple[str, ...]
    undesired: tuple[str, ...]
    scale: float = 1.0
    alpha: float = 0.0
    negative: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    steps: int | None = None

    @property
    def values(self) -> dict[str, Any]:
        # A LoRA's name tells what it was trained on, wherever its file lies.
        return asdict(self) | {"loras": [Path(file).name for file in self.loras]}

    def request(self, task: Task, seed: int) -> t2iedit.Request:
        decor = installed().edit("decor")
        edits = []
        if self.alpha:
            edits.append(decor(undesired=list(self.undesired), alpha=self.alpha, **self.options))
        return t2iedit.Request(
            task.prompt,
            negative=", ".join(self.undesired) if self.negative else None,
            seed=seed,
            steps=self.steps,
            edits=edits,
            loras=[f"{file}:{self.scale}" for file in self.loras if self.scale],
        )


def ways(
    loras: Sequence[Path],
    undesired: Sequence[str],
    options: dict[str, Any],
    steps: int | None = None,
) -> list[Way]:
    plain = Way(PLAIN, tuple(map(str, loras)), tuple(undesired), steps=steps)
    return [
        plain,
        *(replace(plain, name=f"{SCALE} {scale:g}", scale=scale) for scale in SCALES),
        *(replace(plain, name=f"{DECOR} {a:g}", alpha=a, options=options) for a in STRENGTHS),
        replace(plain, name=f"{NEGATIVE} prompt", negative=True),
    ]


class Bench:
    """A studio, its LoRAs, how much is painted, and how the results' names end."""

    def __init__(
        self,
        studio: Studio,
        training: Training,
        *,
        steps: int | None = None,
        quick: bool = False,
        ending: str = "",
    ) -> None:
        self.studio, self.training, self.steps = studio, training, steps
        self.quick, self.ending = quick, ending

    @property
    def choice(self) -> Path:
        return RESULTS / f"leakage-choice{self.ending}.json"

    def lora(self, case: Case) -> Path:
        """The case's file, trained if it is not there yet."""
        model = self.studio.model
        values = asdict(self.training) | {"case": asdict(case), "model": model.fingerprint}
        values |= {"caption": case.caption}
        path = self.studio.folder / f"{case.word}-{digests.of_json(values, 10)}.safetensors"
        if not path.exists():
            model.patch([])
            pictures = pictures_of(case, min(model.defaults.size))
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f"unfinished-{path.name}")
            overfit(model, pictures, case.caption, part, self.training).rename(path)
        return path

    def seen(self, case: Case | Mixed, way: Way) -> list[Seen]:
        tasks = self.tasks(case)
        self.studio.paint([way], tasks, SEED)
        place = self.studio.place(way, SEED)
        return [case.judge(picture(place, k), task) for k, task in enumerate(tasks)]

    def tasks(self, case: Case | Mixed) -> list[Task]:
        return tasks_of(case)[:: 9 if self.quick else 1]


def tune(bench: Bench) -> None:
    """The reading with the highest mean of followed, kept and not leaked, over two strengths."""
    tried = []
    cases = TUNED[:1] if bench.quick else TUNED
    for options in READINGS[: 2 if bench.quick else None]:
        values = []
        for case in cases:
            plain = ways([bench.lora(case)], case.undesired, options, bench.steps)[0]
            for alpha in (0.5, 1.0):
                way = replace(plain, name="DECOR", alpha=alpha, options=options)
                values += [goodness(each) for each in bench.seen(case, way)]
        tried.append({"options": options, "goodness": float(np.mean(values)), "n": len(values)})
        print(f"{tried[-1]['goodness']:.3f}  {options}", flush=True)
    best = max(tried, key=lambda entry: entry["goodness"])
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"options": best["options"], "tried": tried}, indent=1)
    bench.choice.write_text(text + "\n")
    print(f"written to {bench.choice}")


def goodness(seen: Seen) -> float:
    return (seen.followed + seen.kept + (not seen.leaked)) / 3


def report(bench: Bench, clip: str | None, stem: str) -> None:
    options = json.loads(bench.choice.read_text())["options"] if bench.choice.exists() else {}
    cases: list[Case | Mixed] = list(REPORTED[:1] if bench.quick else REPORTED)
    cases.append(Mixed(REPORTED[0], REPORTED[-1]))
    rows, found, sheets = [], {}, []
    for case in cases:
        loras = [bench.lora(part) for part in case.parts]
        own = {way.name: way for way in ways(loras, case.undesired, options, bench.steps)}
        seen = {name: bench.seen(case, way) for name, way in own.items()}
        for name, each in seen.items():
            rows += shares(f"{case.name}: {name}", each)
        rows += differences(case.name, seen)
        if clip is not None:
            rows += clip_shares(bench, case, own, clip)
        found[case.name] = seen
        sheets.append((case, list(own.values())))
    singles = [found[case.name] for case in cases[:-1]]
    pooled = {name: [each for seen in singles for each in seen[name]] for name in singles[0]}
    for name, each in pooled.items():
        rows += shares(f"all LoRAs: {name}", each)
    rows += differences("all LoRAs", pooled)
    show(rows)
    save(stem, rows, {"model": bench.studio.model.name, "decor": options} | asdict(bench.training))
    chart(pooled).save(RESULTS / f"{stem}.png")
    sheet(bench, sheets).save(RESULTS / f"{stem}-pictures.png")


def shares(name: str, seen: Sequence[Seen]) -> Iterator[dict[str, Any]]:
    for metric in ("leaked", "followed", "kept"):
        yield share(name, metric, sum(getattr(each, metric) for each in seen), len(seen))


def differences(name: str, seen: dict[str, list[Seen]]) -> Iterator[dict[str, Any]]:
    """Every way against the plain LoRA; and how much more lies under DECOR's curve than under that of scales."""
    for way, each in seen.items():
        for metric in ("leaked", "followed", "kept") if way != PLAIN else ():
            gains = [
                float(getattr(a, metric)) - float(getattr(b, metric))
                for a, b in zip(each, seen[PLAIN], strict=True)
            ]
            yield paired(f"{name}: {way}", f"{metric}, more than the LoRA", gains)
    for other in (SCALE, NEGATIVE):
        for title, measure in MEASURES.items():
            yield area_gain(f"{name}: DECOR's front over {other}'s", title, seen, other, measure)


def clip_shares(bench: Bench, case: Case | Mixed, own: dict[str, Way], clip: str) -> Iterator[dict]:
    """CLIP-T and CLIP-I, as the literature has them."""
    from personalization_clip import pretrained

    towers = pretrained(clip)
    learned_from = [p for part in case.parts for p in pictures_of(part, 128)]
    for name, way in own.items():
        place = bench.studio.place(way, SEED)
        made = [(t.prompt, Image.open(picture(place, k))) for k, t in enumerate(bench.tasks(case))]
        looks = towers.looks([image for _, image in made])
        text = (looks * towers.words([prompt for prompt, _ in made])).sum(-1)
        image = (looks @ towers.looks(learned_from).T).mean(-1)
        yield mean(f"{case.name}: {name}", "CLIP-T", text.tolist())
        yield mean(f"{case.name}: {name}", "CLIP-I", image.tolist())


def sheet(bench: Bench, cases: Sequence[tuple[Case | Mixed, list[Way]]]) -> Image.Image:
    """Two prompts of each case under every way, after one of the pictures learned from."""
    cells, prompts = [], []
    for case, own in cases:
        tasks = bench.tasks(case)
        for index in (0, len(tasks) // 2):
            size = min(bench.studio.model.defaults.size)
            row = [pictures_of(case.parts[0], size)[index % 2]]
            row += [Image.open(picture(bench.studio.place(way, SEED), index)) for way in own]
            cells.append(row)
            prompts.append(tasks[index].prompt)
    return labelled_grid(cells, ["learned from", *(way.name for way in cases[0][1])], prompts)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("phase", nargs="?", choices=("tune", "report"), default="report")
    parser.add_argument("-m", "--model", default="shapes")
    parser.add_argument("--overfit", choices=TRAININGS, default="hard", help="how far")
    parser.add_argument("--steps", type=int, default=Training.steps, help="of each LoRA's training")
    parser.add_argument("--folder", type=Path, default=Path("out/leakage"))
    parser.add_argument("--clip", metavar="MODEL", help="a CLIP model, for CLIP-T and CLIP-I")
    parser.add_argument("--quick", action="store_true", help="few LoRAs, steps and prompts")
    options = parser.parse_args()
    silence_libraries()
    steps = 40 if options.quick else options.steps
    training = replace(TRAININGS[options.overfit], steps=steps)
    studio = Studio(t2iedit.open_model(options.model), options.folder)
    world = options.model.startswith("shapes")
    bench = Bench(
        studio,
        training,
        steps=STEPS if world else None,
        quick=options.quick,
        ending="-gentle" * (options.overfit == "gentle") + "-quick" * options.quick,
    )
    if options.phase == "tune":
        tune(bench)
        return
    stem = "leakage" if world else f"leakage-{Path(options.model).name}"
    report(bench, options.clip, stem + bench.ending)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"leakage: {error}")
