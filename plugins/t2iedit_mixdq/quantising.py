"""From a model and a wish for bits to a folder of packed weights: calibrate, judge, allocate, pack."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from t2iedit import EditNotSupported, Model, OutputNotWritable, UserError
from t2iedit_mixdq.allocation import Allocation, Scores, candidates, check_budget, most_sensitive
from t2iedit_mixdq.calibration import Ranges, Settings, calibrate
from t2iedit_mixdq.checkpoint import Found, recipe_scheme, write_model
from t2iedit_mixdq.errors import said
from t2iedit_mixdq.hessian import PROBES, predict
from t2iedit_mixdq.quantizers import BITS
from t2iedit_mixdq.recipe import Bits, Recipe, check_fits, mean_bits, read_bits, uniform
from t2iedit_mixdq.report import SIZES
from t2iedit_mixdq.rounding import Learned, learn_all
from t2iedit_mixdq.schemes import WHOLE
from t2iedit_mixdq.sensitivity import Bench, Table, measure
from t2iedit_mixdq.wiring import Layer, find_layer, survey, weights_digest

Stage = Callable[[str, int], Callable[[int], None]]
"""Called with a description and a total when something long begins; gives the function that moves its bar."""


def silent(description: str, total: int) -> Callable[[int], None]:
    """A `Stage` that shows nothing."""
    return lambda count: None


@dataclass(frozen=True, slots=True)
class Wish:
    """How many bits: a mean, or a YAML file of bits by layer; `uniform` forces one width on every layer.

    `protect` is the share of each group that is left whole, the layers whose inputs are most sensitive; `judges` is how
    many prompts judge sensitivity, and `budgets` how many global means under the wished one are tried as well. Without
    `decoupled` every layer is judged by SQNR, the paper's ablation.

    Beyond the paper, all off unless asked for: `hessian` predicts sensitivity from second derivatives where the paper
    measures it, `flexround` learns the rounding of weights, `group` gives linear layers under 8 bits a step for so many
    inputs, and `text_encoders` packs these in 8 bits.
    """

    weights: float | Path = 8
    activations: float | Path = 8
    uniform: bool = False
    protect: float = 0.01
    judges: int = 4
    budgets: int = 1
    decoupled: bool = True
    hessian: bool = False
    flexround: bool = False
    group: int = 0
    text_encoders: bool = False


@dataclass
class Quantising:
    """One quantisation at work: what it found on the way."""

    model: Model
    wish: Wish
    settings: Settings
    work: Path
    stage: Stage = silent
    ranges: Ranges = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def recipe(self) -> Recipe:
        """Calibrate and allocate. Raises `UserError` for bits that cannot be."""
        layers = survey(self.model.denoiser)
        fixed = {of: fixed_bits(getattr(self.wish, of), layers, of, self.wish) for of in SIZES}
        for of, bits in fixed.items():
            if bits is None:
                check_budget(layers, of, float(getattr(self.wish, of)))
        self._make_room()
        if fixed["activations"] is None or set(fixed["activations"].values()) != {WHOLE}:
            self.ranges = self._calibrated()
        bits = self._allocated(fixed, layers)
        self.facts["means"] = {
            of: round(mean_bits(bits[of], layers, size), 3) for of, size in SIZES.items()
        }
        self.facts["model"] = {
            "name": self.model.name,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "weights": weights_digest(self.model.denoiser, layers),
            "fingerprint": self.model.fingerprint,
            "prompts": len(self.settings.prompts),
        }
        return Recipe(
            bits["weights"],
            bits["activations"],
            bos_aware=self.settings.bos_aware,
            search=self.settings.search,
            rounding="flexround" if self.wish.flexround else "nearest",
            group=self.wish.group,
            text_encoders=self.wish.text_encoders,
            facts=self.facts,
        )

    def found(self, recipe: Recipe) -> Found:
        """What packing needs beside the recipe: ranges, and the rounding if it is to be learned."""
        if not self.wish.flexround:
            return Found(self.ranges)
        unet: Any = self.model.denoiser
        schemes = {
            name: recipe_scheme(recipe, layer, find_layer(unet, name).weight, self.ranges.get(name))
            for name, layer in survey(unet).items()
        }
        bits = repr((recipe.weights, recipe.activations, recipe.group))
        digest = self.settings.digest(self.model.fingerprint + bits)
        learned = Learned(self.work / "rounding", digest)
        advance = self.stage(
            "learning to round", sum(s.delta is not None for s in schemes.values())
        )
        learn_all(self.model, self.settings, schemes, learned, on_layer=advance)
        return Found(self.ranges, learned)

    def _make_room(self) -> None:
        try:
            self.work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputNotWritable(
                f'"{self.work}" cannot be made ({said(error)}); give -o a folder that can be written'
            ) from error

    def _calibrated(self) -> Ranges:
        advance = self.stage("calibrating", len(self.settings.prompts))
        state = self.work / "calibration.safetensors"
        return calibrate(self.model, self.settings, state=state, on_prompt=advance)

    def _allocated(
        self, fixed: dict[str, Bits | None], layers: dict[str, Layer]
    ) -> dict[str, Bits]:
        open_parts = [of for of, bits in fixed.items() if bits is None]
        chosen = {of: bits for of, bits in fixed.items() if bits is not None}
        if not open_parts:
            return chosen
        judged = replace(self.settings, prompts=self.settings.prompts[: self.wish.judges])
        bench = Bench(self.model, judged, self.ranges, self.wish.group)
        scores = self._scores(bench, open_parts)
        whole = frozenset[str]()
        if "activations" in open_parts:
            whole = most_sensitive(scores["activations"], layers, self.wish.protect)
            self.facts["left whole"] = sorted(whole)
        for of in ("weights", "activations"):
            if of in open_parts:
                chosen[of] = self._best(bench, scores[of], of, chosen.get("weights", {}), whole)
        return {of: dict.fromkeys(layers, WHOLE) | chosen[of] for of in SIZES}

    def _scores(self, bench: Bench, of: list[str]) -> Table:
        if self.wish.hessian:
            advance = self.stage("second derivatives", len(bench.calls) * PROBES)
            return predict(bench, of, on_score=advance)
        advance = self.stage("judging layers", len(of) * len(bench.layers) * len(BITS))
        state, decoupled = self.work / "sensitivity.jsonl", self.wish.decoupled
        return measure(bench, of, state=state, decoupled=decoupled, on_score=advance)

    def _best(
        self, bench: Bench, scores: Scores, of: str, weights: Bits, whole: frozenset[str]
    ) -> Bits:
        """The candidate whose pictures are nearest to the reference, weights first as in MixDQ."""
        kept = {name: by_bits for name, by_bits in scores.items() if name not in whole}
        if not kept:
            raise UserError(
                f"protecting {self.wish.protect:g} of the layers leaves none to give bits to; protect fewer"
            )
        found = self._candidates(kept, bench.layers, of)
        advance = self.stage(f"choosing {of}", len(found))
        errors = []
        for allocation in found:
            recipe = {"weights": weights, "activations": {}} | {of: allocation.bits}
            schemes = {
                name: bench.scheme(
                    name,
                    recipe["weights"].get(name, WHOLE),
                    recipe["activations"].get(name, WHOLE),
                )
                for name in bench.layers
            }
            with bench.quantised(schemes):
                errors.append(bench.error())
            advance(1)
        best = found[int(np.argmin(errors))]
        self.facts[of] = {
            "mean of allocated layers": round(best.mean, 4),
            "optimality gap": best.gap,
            "candidates": len(found),
            "image error": round(min(errors), 4),
        }
        return best.bits

    def _candidates(self, scores: Scores, layers: dict[str, Layer], of: str) -> list[Allocation]:
        target = float(getattr(self.wish, of))
        found: list[Allocation] = []
        refusal: UserError | None = None
        for budget in np.linspace(target, target - 0.3, self.wish.budgets):
            try:
                found += candidates(
                    scores, layers, of, float(budget), decoupled=self.wish.decoupled
                )
            except UserError as error:
                refusal = refusal or error
        if not found and refusal is not None:
            raise refusal
        return found


def fixed_bits(asked: float | Path, layers: dict[str, Layer], of: str, wish: Wish) -> Bits | None:
    """The bits that need no allocation: a file's, one width for all, or 8 or 16 everywhere. None if they must be found.

    Raises `UserError`.
    """
    if isinstance(asked, Path):
        bits = read_bits(asked)
        check_fits(bits, layers, f'"{asked}"')
        return dict.fromkeys(layers, WHOLE) | bits
    if asked in (8, WHOLE):
        return uniform(layers, int(asked))
    if wish.uniform:
        if asked not in BITS:
            raise UserError(
                f"--uniform needs one width for all {of}: 2, 4, 8 or 16, and {asked:g} is none of them;"
                " leave --uniform out to have bits allocated to that mean"
            )
        return uniform(layers, int(asked))
    if not 2 <= asked <= 8:
        raise UserError(
            f"{of} of {asked:g} bits cannot be had: give a mean from 2 to 8, 16 to leave them alone, or a YAML file"
        )
    return None


def quantise(
    model: Model, wish: Wish, settings: Settings, out: Path, *, stage: Stage = silent
) -> Recipe:
    """Quantise the model into the folder `out`, which must not exist.

    What was found on the way is kept beside it until it is whole, so that a killed run goes on. Raises `UserError`.
    """
    if hasattr(model.denoiser, "mixdq"):
        raise EditNotSupported(
            f'the model "{model.name}" is quantised already; give the one it was made from'
        )
    if out.exists():
        raise UserError(f'"{out}" exists already; give -o another folder, or remove it')
    with model.lock:
        model.patch([])
    work = out.with_name(out.name + ".work")
    job = Quantising(model, wish, settings, work, stage)
    recipe = job.recipe()
    found = job.found(recipe)
    stage("packing", 0)
    write_model(model, recipe, found, out)
    shutil.rmtree(work, ignore_errors=True)
    return recipe
