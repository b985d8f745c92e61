"""MixDQ: quantised inference of few-step text-to-image models (arXiv 2405.17873)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

import t2iedit
from t2iedit import EditNotSupported, File, Model, Run, TextEmbedding


class MixDQ(t2iedit.Edit):
    """Simulate a quantised UNet on an open model, undone bit for bit (MixDQ, arXiv 2405.17873).

    With a recipe, the bits, steps and ranges that `t2iedit mixdq quantize` found; without, weights of one width.
    It shows what quantisation does to a picture; a folder given to `-m` is what saves memory and time.
    """

    name = "mixdq"
    example = {"weights": 4}
    neutral = {"weights": 16}

    class Options(t2iedit.Options):
        recipe: File | None = Field(
            None, description="A folder that `t2iedit mixdq quantize` wrote, for this same model."
        )
        weights: Literal[2, 4, 8, 16] = Field(
            16, description="Without a recipe: the bits of all weights; inputs stay whole."
        )

        @model_validator(mode="before")
        @classmethod
        def _numbers(cls, values: Any) -> Any:
            if isinstance(values, dict) and str(values.get("weights", "")).isdecimal():
                values = values | {"weights": int(values["weights"])}
            return values

        @model_validator(mode="after")
        def _one_source(self) -> "MixDQ.Options":
            if self.recipe is not None and self.weights != 16:
                raise ValueError("give recipe or weights, not both: a recipe says the bits itself")
            return self

    @classmethod
    def in_words(cls, facts: dict[str, Any]) -> str:
        return f"was {facts['runs']}" if "runs" in facts else super().in_words(facts)

    def check(self, run: Run) -> None:
        if hasattr(run.model.denoiser, "mixdq"):
            raise EditNotSupported(
                f'the model "{run.model.name}" is quantised already; leave out -e mixdq, or give the model it was made from'
            )
        if sum(isinstance(edit, MixDQ) for edit in run.edits) > 1:
            raise EditNotSupported("a model is quantised once; give mixdq a single time")
        if self.options.recipe is not None:
            self._check_weights(self._load_recipe(run.model), run)

    def patch_model(self, model: Model) -> Callable[[], None]:
        from t2iedit_mixdq.bos import BosRows
        from t2iedit_mixdq.calibration import weight_schemes
        from t2iedit_mixdq.checkpoint import read_schemes
        from t2iedit_mixdq.simulation import simulate
        from t2iedit_mixdq.wiring import survey

        layers = survey(model.denoiser)
        if self.options.recipe is None:
            schemes = weight_schemes(model.denoiser, layers, self.options.weights)
            return simulate(model.denoiser, layers, schemes, bos=BosRows())
        recipe = self._load_recipe(model)
        schemes = read_schemes(self._folder, recipe, layers)
        bos = BosRows() if recipe.bos_aware else None
        return simulate(model.denoiser, layers, schemes, bos=bos)

    def edit_embedding(self, embedding: TextEmbedding, run: Run) -> TextEmbedding:
        """Changes nothing: it looks whether the edits before it left the calibrated range."""
        from t2iedit_mixdq.saturation import text_grid, warn_of_clipping

        if self.options.recipe is not None:
            grid = text_grid(self._folder)
            warn_of_clipping(self, embedding, grid, run)
        run.record(
            self, runs="simulated; the original weights are kept, so no memory or time is saved"
        )
        return embedding

    @property
    def _folder(self) -> Path:
        from t2iedit_mixdq.recipe import folder_of

        return folder_of(Path(self.options.recipe))

    @property
    def _source(self) -> str:
        return f'the recipe "{self.options.recipe}"'

    def _load_recipe(self, model: Model) -> Any:
        from t2iedit_mixdq.checkpoint import hollow_unet
        from t2iedit_mixdq.recipe import check_fits, check_same_form, read_recipe
        from t2iedit_mixdq.wiring import survey

        recipe = read_recipe(self._folder)
        if not self._is_on(model):
            layers = survey(model.denoiser)
            check_fits(recipe.weights, layers, self._source)
            check_fits(recipe.activations, layers, self._source)
            check_same_form(survey(hollow_unet(self._folder)), layers, self._source)
        return recipe

    def _check_weights(self, recipe: Any, run: Run) -> None:
        """Learned rounding is that of certain weights, and steps fit them best."""
        if recipe.made_of(run.model):
            return
        if recipe.rounding != "nearest":
            raise EditNotSupported(
                f"{self._source} holds the rounding of another model's weights; quantise this model itself"
            )
        run.warn(
            f"{self._source} was made from other weights, whose ranges need not fit these; quantise this model itself"
        )

    def _is_on(self, model: Model) -> bool:
        from t2iedit_mixdq.simulation import Simulated

        return any(isinstance(module, Simulated) for module in model.denoiser.modules())


@t2iedit.hookimpl
def register_edits(register: Callable[[type[t2iedit.Edit]], None]) -> None:
    register(MixDQ)


@t2iedit.hookimpl
def open_checkpoint(path: Path, device: Any, dtype: Any) -> Any:
    """The pipeline of a folder of packed weights; None for any other."""
    if not (path / "mixdq.yaml").is_file():
        return None
    from t2iedit_mixdq.checkpoint import load_pipeline

    return load_pipeline(path, device, dtype)
