"""For authors of plugins: tiny offline models, fixtures, and the conformance test that every edit passes.

Write `pytest_plugins = ["t2iedit.testing"]` in a conftest.py for the fixtures, or call `check_edit` alone.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from t2iedit.conditioning import Conditioning, Embeddings
from t2iedit.edit import Edit, Run
from t2iedit.encoding import condition
from t2iedit.model import Model
from t2iedit.opening import open_model
from t2iedit.pipeline import Progress, generate, start
from t2iedit.request import Request, edit_to_json
from t2iedit.text import Kind, TextEmbedding
from t2iedit.tiny import FAMILIES, tiny_pipeline

PROMPT = "a red cat and a blue dog"
LONGER = "a photo of a red cat and a blue dog in the fog"
STEPS = 3


def tiny_model(family: str = "sd1", *, seed: int = 0) -> Model:
    """An untrained model of a family: `sd1`, `sd2`, `sdxl`, `sd3` or `flux`."""
    return open_model(tiny_pipeline(family, seed=seed))


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Model:
    """A tiny model of each family in turn."""
    return tiny_model(request.param)


@pytest.fixture
def sd1() -> Model:
    """A tiny SD 1.x model, which pads with EOT."""
    return tiny_model("sd1")


@pytest.fixture
def sd2() -> Model:
    """A tiny SD 2.x model, which pads with "!"."""
    return tiny_model("sd2")


@pytest.fixture
def sdxl() -> Model:
    """A tiny SDXL model with two encoders."""
    return tiny_model("sdxl")


def check_edit(edit: type[Edit], models: Sequence[Model] | None = None) -> None:
    """Assert the contract of an edit on a tiny model of each family, with its `example` and `neutral` options.

    Options survive JSON; shapes, dtype, device and BOS rows stay; inputs are not mutated; the model is as it was after a
    run and after a run that failed; the example changes what is painted; neutral options change nothing, bit for bit;
    and a batch of two equals two singles within 1e-5. Raises `AssertionError`, or the `PluginError` of a run.
    """
    check_options(edit)
    for model in models or [tiny_model(family) for family in FAMILIES]:
        before = _untouched(model)
        check_purity(edit, model)
        check_restored(edit, model, before)
        check_effect(edit, model)
        check_neutral(edit, model)
        check_batch(edit, model)


def check_options(edit: type[Edit]) -> None:
    """The example's options survive JSON."""
    original = edit(**edit.example)
    data = json.loads(json.dumps(edit_to_json(original)))
    assert edit(**data["options"]).options == original.options, (
        f"{edit.name}: options change on their way through JSON"
    )


def check_effect(edit: type[Edit], model: Model) -> None:
    """The example changes what is painted."""
    plain, edited = _painted(model), _painted(model, edit(**edit.example))
    assert not torch.equal(plain, edited), f"{edit.name}: its example changes nothing"


def check_neutral(edit: type[Edit], model: Model) -> None:
    """The neutral options change nothing, bit for bit; an edit without them is let off."""
    if edit.neutral is not None:
        neutral = _painted(model, edit(**edit.neutral))
        assert torch.equal(_painted(model), neutral), f"{edit.name}: neutral options have an effect"


def check_purity(edit: type[Edit], model: Model) -> None:
    """`edit_embedding` keeps shape, dtype, device and BOS rows, and leaves its input as it was."""
    run = _run(model, edit, PROMPT)
    (instance,) = run.edits
    for encoder in model.encoders:
        embedding = encoder.encode(encoder.tokenize(PROMPT))
        before = _parts(embedding)
        copies = [part.clone() for part in before]
        after = _parts(instance.edit_embedding(embedding, run))
        same = all(map(torch.equal, before, copies))
        assert same, f"{edit.name}: its input was mutated"
        for nature in ("shape", "dtype", "device"):
            kept = [getattr(part, nature) for part in before]
            assert [getattr(part, nature) for part in after] == kept, (
                f"{edit.name}: the {nature} changed"
            )
        bos = embedding.tokens.of(Kind.BOS)
        assert torch.equal(after[0][bos], before[0][bos]), f"{edit.name}: the BOS row changed"


def check_batch(edit: type[Edit], model: Model, tolerance: float = 1e-5) -> None:
    """Two prompts conditioned together equal each alone."""

    def runs() -> list[Run]:
        return [_run(model, edit, prompt) for prompt in (PROMPT, LONGER)]

    together = condition(runs())
    alone = [condition([run])[0] for run in runs()]
    for both, single in zip(together, alone, strict=True):
        pairs = zip(_tensors(both), _tensors(single), strict=True)
        far = max((a - b).abs().max().item() for a, b in pairs)
        assert far <= tolerance, f"{edit.name}: a batch of two differs from singles by {far:g}"


def check_restored(edit: type[Edit], model: Model, before: "Snapshot | None" = None) -> None:
    """After a run, and after one that raised at its first step, the model is as it was (`before`, else now)."""
    before = before or _untouched(model)

    def fail(progress: Progress) -> None:
        raise _Stopped

    for on_step in (None, fail):
        with suppress(_Stopped):
            generate(model, _request(edit(**edit.example)), on_step=on_step)
        difference = before.difference(Snapshot.of(model))
        assert difference is None, f"{edit.name}: {difference} not as before"


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """What an edit might leave behind in a model: what it paints, and its modules with all they hold."""

    painted: Tensor
    tensors: dict[str, Tensor]
    modules: dict[str, Any]

    @classmethod
    def of(cls, model: Model) -> "Snapshot":
        # Patches stay until a run does without them; a hook might take itself off while one is painted.
        model.patch([])
        tensors: dict[str, Tensor] = {}
        modules: dict[str, Any] = {}
        for name, component in model.pipeline.components.items():
            if isinstance(component, nn.Module):
                held = [*component.named_parameters(), *component.named_buffers()]
                tensors |= {f"{name}.{key}": value.detach().clone() for key, value in held}
                modules |= {f"{name}.{key}": _facts(m) for key, m in component.named_modules()}
        return cls(_painted(model), tensors, modules)

    def difference(self, other: "Snapshot") -> str | None:
        """The first thing that differs, None if nothing does."""
        pairs = (self.modules, other.modules), (self.tensors, other.tensors)
        for mine, theirs in pairs:
            if mine.keys() != theirs.keys():
                return f"{min(mine.keys() ^ theirs.keys())} is"
        changed = [name for name in self.modules if self.modules[name] != other.modules[name]]
        changed += [n for n in self.tensors if not torch.equal(self.tensors[n], other.tensors[n])]
        if changed:
            return f"{changed[0]} is"
        return None if torch.equal(self.painted, other.painted) else "the picture without edits is"


def _untouched(model: Model) -> Snapshot:
    """The model before an edit, run once, since the libraries hook into some modules when they first run."""
    _painted(model)
    return Snapshot.of(model)


def _facts(module: nn.Module) -> tuple[Any, ...]:
    """A module's class, attention processor, mode, frozen parameters and number of hooks."""
    processor = type(getattr(module, "processor", None))
    frozen = [parameter.requires_grad for parameter in module.parameters(recurse=False)]
    hooks = len(module._forward_hooks) + len(module._forward_pre_hooks)
    return type(module), processor, module.training, frozen, hooks


class _Stopped(Exception):
    pass


def _request(*edits: Edit, prompt: str = PROMPT) -> Request:
    return Request(prompt, steps=STEPS, edits=edits)


def _run(model: Model, edit: type[Edit], prompt: str) -> Run:
    return start(model, _request(edit(**edit.example), prompt=prompt))


def _painted(model: Model, *edits: Edit) -> Tensor:
    """The latents after the last step: the picture before it is rounded to 256 levels."""
    latents: list[Tensor] = []
    generate(model, _request(*edits), on_step=lambda progress: latents.append(progress.latents))
    return latents[-1]


def _parts(embedding: TextEmbedding) -> list[Tensor]:
    return [part for part in (embedding.hidden, embedding.pooled) if part is not None]


def _tensors(conditioning: Conditioning) -> list[Tensor]:
    def side(embeddings: Embeddings) -> list[Tensor]:
        return [part for embedding in embeddings for part in _parts(embedding)]

    parts = [conditioning, *(later for _, later in conditioning.changes)]
    return [tensor for part in parts for tensor in side(part.prompt + (part.negative or ()))]


__all__ = [
    "FAMILIES",
    "PROMPT",
    "Snapshot",
    "check_batch",
    "check_edit",
    "check_effect",
    "check_neutral",
    "check_options",
    "check_purity",
    "check_restored",
    "model",
    "sd1",
    "sd2",
    "sdxl",
    "tiny_model",
    "tiny_pipeline",
]
