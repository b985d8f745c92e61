"""The pieces of the personalisation benchmark: one variant's learning of one concept, and what its pictures show."""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

import torch
from personalization_concepts import Unknown, asked_of, drawn_as_asked, pictures_of, teach_renderer
from personalization_painting import painted
from personalization_referee import Seen, judge
from PIL import Image
from t2iedit_context import Core
from t2iedit_context.learning import learn
from t2iedit_context.loop import LearningFailed
from t2iedit_context.settings import PRESETS, Settings
from tqdm import tqdm

import t2iedit
from t2iedit.cli.terminal import silence_libraries

FLOOR, CEILING = "the category's word", "drawn as asked"
FULL, FITTED = "full", "full + test-time"
FITTING = 10
"""Steps of test-time optimisation, as in the paper."""
STAGES = ("stage 1 alone", "both stages")
Way = tuple[str, str]
"""What was done, and after which stage."""


@dataclass(frozen=True, slots=True)
class Job:
    """What to learn and how: `own` are the settings that differ from the preset. A short one has every third prompt."""

    name: str
    unknown: Unknown
    own: dict[str, Any]
    seeds: int
    short: bool = False

    @property
    def settings(self) -> Settings:
        given: dict[str, Any] = PRESETS["shapes"] | {"kind": self.unknown.kind} | self.own
        return Settings(
            **{"finetune_unet": "full"} | given,
            placeholder=self.unknown.placeholder,
            category=self.unknown.category,
        )

    @property
    def asked(self) -> tuple[Any, ...]:
        return asked_of(self.unknown)[:: 3 if self.short else 1]


@dataclass(frozen=True, slots=True)
class Piece:
    """A job's pictures, judged: prompt by prompt, seed by seed."""

    job: Job
    folder: Path
    seen: dict[Way, list[Seen]]

    def images(self, way: str, stage: str) -> list[Image.Image]:
        found = []
        for number in range(len(self.seen[way, stage])):
            with Image.open(_path(self.folder, (way, stage), number)) as picture:
                found.append(picture.convert("RGB"))
        return found

    def prompts(self, words: str) -> list[str]:
        """Every picture's prompt with `words` in the concept's place."""
        return [
            asked.template.replace("{}", words)
            for asked in self.job.asked
            for _ in range(self.job.seeds)
        ]


Waiting = Future["Piece | None"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where pieces lie, and the model they are made with; none is begun after `until`, in seconds of `time.time`."""

    work: Path
    model: str
    device: str | None
    until: float


def pieces_of(jobs: Sequence[Job], place: Place, workers: int) -> list[Piece]:
    """The jobs' pieces in their order, as far as they could be made in time."""
    with pool_of(workers) as pool:
        return finished(begun(pool, jobs, place))


def pool_of(workers: int) -> ProcessPoolExecutor:
    """Processes of one thread each; what a piece holds does not depend on how many there are."""
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"))


def begun(pool: ProcessPoolExecutor, jobs: Sequence[Job], place: Place) -> list[Waiting]:
    return [pool.submit(do, job, place) for job in jobs]


def finished(waiting: Sequence[Waiting]) -> list[Piece]:
    """Those that were made; a learning that failed is told of and left out."""
    for _ in tqdm(as_completed(waiting), total=len(waiting), unit="piece"):
        pass
    pieces = []
    for future in waiting:
        try:
            pieces.append(future.result())
        except LearningFailed as error:
            print(f"not learned: {error}")
    return [piece for piece in pieces if piece is not None]


def do(job: Job, place: Place) -> Piece | None:
    """The piece from its folder if it is there, else made if there is time."""
    model = _opened(place.model, place.device)
    name = f"{job.unknown.name}-{job.name}-{_digest(job, model)}"
    folder = place.work / name.replace(" ", "-").replace(",", "")
    record = folder / "seen.json"
    if not record.exists() and time.time() > place.until:
        return None
    if not record.exists():
        seen = {way: _kept(folder, way, images, job) for way, images in _made(job, model, folder)}
        text = json.dumps([[*way, [asdict(s) for s in found]] for way, found in seen.items()])
        unfinished = record.with_suffix(".part")
        unfinished.write_text(text)
        os.replace(unfinished, record)
    stored = json.loads(record.read_text())
    return Piece(job, folder, {(w, s): [Seen(**one) for one in found] for w, s, found in stored})


@cache
def _opened(source: str, device: str | None) -> Any:
    """Each process opens the model once."""
    torch.set_num_threads(1)
    silence_libraries()
    teach_renderer()
    return t2iedit.open_model(source, device=device, dtype="float32")


def _digest(job: Job, model: Any) -> str:
    """What a piece depends on."""
    what = [job.settings.model_dump(mode="json"), job.seeds, job.short, model.fingerprint]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]


def _made(job: Job, model: Any, folder: Path) -> Any:
    """The pictures of each way that a job is good for."""
    if job.name == CEILING:
        yield from ((way, _rebuilt(job, model)) for way in _ways(CEILING))
    elif job.name == FLOOR:
        yield from ((way, _painted(job, model, job.unknown.category)) for way in _ways(FLOOR))
    else:
        yield from _learned(job, model, folder)


def _ways(name: str) -> list[Way]:
    """Nothing is learned, so there is one stage."""
    return [(name, STAGES[1])]


def _learned(job: Job, model: Any, folder: Path) -> Any:
    pictures = pictures_of(job.unknown, min(model.defaults.size))
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "concept.safetensors"
        # A piece that was stopped begins anew, so nothing is kept of it on the way.
        learned = learn(model, pictures, job.settings, path, save_every=10**9)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(json.dumps(learned.report, indent=1) + "\n")
        fitted = {FITTED: fitting(job.settings)} if job.name == FULL else {}
        for stage in STAGES:
            painter, loras = (model, []) if stage == STAGES[0] else _second(model, learned.unet)
            for name, own in ({job.name: {}} | fitted).items():
                core = Core(concept=[str(path)], **own)
                words = job.unknown.placeholder
                yield (name, stage), _painted(job, painter, words, edits=[core], loras=loras)


def _second(model: Any, learned: Path | None) -> tuple[Any, list[str]]:
    """Who paints after the second stage: the model it wrote, or the one it began with under a LoRA."""
    assert learned is not None
    if learned.is_dir():
        opened = t2iedit.open_model(str(learned), device=str(model.device), dtype="float32")
        return opened, []
    return model, [str(learned)]


def fitting(settings: Settings) -> dict[str, Any]:
    """Test-time optimisation by the same two terms as in the learning, at a tenth of its rate, as in the paper."""
    return {
        "optimise": FITTING,
        "learning_rate": settings.learning_rate / 10,
        "embedding_weight": settings.embedding_weight,
        "attention_weight": settings.attention_weight,
    }


def _painted(job: Job, model: Any, words: str, **how: Any) -> list[Image.Image]:
    """Every prompt with every seed."""
    prompts = [asked.template.replace("{}", words) for asked in job.asked]
    return painted(model, prompts, job.seeds, **how)


@torch.no_grad()
def _rebuilt(job: Job, model: Any) -> list[Image.Image]:
    """Scenes as asked for, encoded and decoded: what the referee sees of them at best."""
    pipeline, size = model.pipeline, min(model.defaults.size)
    random = Random(job.unknown.name)
    scenes = [
        drawn_as_asked(job.unknown, asked, size, random)
        for asked in job.asked
        for _ in range(job.seeds)
    ]
    pixels = pipeline.image_processor.preprocess(scenes).to(model.device)
    return pipeline.image_processor.postprocess(
        pipeline.vae.decode(pipeline.vae.encode(pixels).latent_dist.mean).sample
    )


def _kept(folder: Path, way: Way, images: Sequence[Image.Image], job: Job) -> list[Seen]:
    """The pictures' judgements, in their order; the pictures themselves are saved."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        image.save(_path(folder, way, number))
    wanted = [asked for asked in job.asked for _ in range(job.seeds)]
    return [judge(image, job.unknown, asked) for image, asked in zip(images, wanted, strict=True)]


def _path(folder: Path, way: Way, number: int) -> Path:
    return folder / f"{' '.join(way)} {number:02d}.png".replace(" ", "-")
