"""For authors of plugins: tiny offline models, fixtures, and the conformance test that every edit passes.

Write `pytest_plugins = ["t2iedit.testing"]` in a conftest.py for the fixtures, or call `check_edit` alone.
"""

from collections.abc import Sequence
from contextlib import suppress
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
from t2iedit.text import Kind
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

    Options survive JSON; the example changes the picture; shapes, dtype, device and BOS rows stay; inputs are not
    mutated; neutral options change nothing, bit for bit; a batch of two equals two singles within 1e-5; and the model is
    as it was after a run and after a run that failed.
    """
    check_options(edit)
    for model in models or [tiny_model(family) for family in FAMILIES]:
        check_effect(edit, model)
        check_neutral(edit, model)
        check_purity(edit, model)
        check_batch(edit, model)
        check_restored(edit, model)


def check_options(edit: type[Edit]) -> None:
    """The example's options survive JSON."""
    original = edit(**edit.example)
    data = edit_to_json(original)
    assert edit(**data["options"]) == original, (
        f"{edit.name}: options change on their way through JSON"
    )


def check_effect(edit: type[Edit], model: Model) -> None:
    """The example changes the picture, and `condition` accepts what the edit returns."""
    plain, edited = _pixels(model, ()), _pixels(model, (edit(**edit.example),))
    assert not torch.equal(plain, edited), f"{edit.name}: its example changes nothing"


def check_neutral(edit: type[Edit], model: Model) -> None:
    """The neutral options change nothing, bit for bit; an edit without them is let off."""
    if edit.neutral is not None:
        neutral = _pixels(model, (edit(**edit.neutral),))
        assert torch.equal(_pixels(model, ()), neutral), (
            f"{edit.name}: neutral options have an effect"
        )


def check_purity(edit: type[Edit], model: Model) -> None:
    """`edit_embedding` keeps shape, dtype, device and BOS rows, and leaves its input as it was."""
    run = _run(model, edit, PROMPT)
    for encoder in model.encoders:
        embedding = encoder.encode(encoder.tokenize(PROMPT))
        before = embedding.hidden.clone()
        (instance,) = run.edits
        after = instance.edit_embedding(embedding, run).hidden
        assert torch.equal(embedding.hidden, before), f"{edit.name}: its input was mutated"
        assert after.shape == before.shape, f"{edit.name}: the shape changed"
        assert after.dtype == before.dtype, f"{edit.name}: the dtype changed"
        assert after.device == before.device, f"{edit.name}: the device changed"
        bos = embedding.tokens.of(Kind.BOS)
        assert torch.equal(after[bos], before[bos]), f"{edit.name}: the BOS row changed"


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


def check_restored(edit: type[Edit], model: Model) -> None:
    """After a run, and after one that raised at its first step, the model is as it was."""
    reference, state = _pixels(model, ()), _state(model)

    def fail(progress: Progress) -> None:
        raise _Stopped

    for on_step in (None, fail):
        with suppress(_Stopped):
            generate(model, _request(edit(**edit.example)), on_step=on_step)
        assert torch.equal(_pixels(model, ()), reference), f"{edit.name}: the model is not restored"
        _assert_same_state(edit, state, _state(model))


class _Stopped(Exception):
    pass


def _request(*edits: Edit, prompt: str = PROMPT) -> Request:
    return Request(prompt, steps=STEPS, edits=edits)


def _run(model: Model, edit: type[Edit], prompt: str) -> Run:
    return start(model, _request(edit(**edit.example), prompt=prompt))


def _pixels(model: Model, edits: tuple[Edit, ...]) -> Tensor:
    image = generate(model, _request(*edits)).image
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)


def _tensors(conditioning: Conditioning) -> list[Tensor]:
    def side(embeddings: Embeddings) -> list[Tensor]:
        return [tensor for e in embeddings for tensor in (e.hidden, e.pooled) if tensor is not None]

    parts = [conditioning, *(later for _, later in conditioning.changes)]
    return [tensor for part in parts for tensor in side(part.prompt + (part.negative or ()))]


def _state(model: Model) -> dict[str, Any]:
    unet: Any = model.denoiser
    modules = [c for c in model.pipeline.components.values() if isinstance(c, nn.Module)]
    return {
        "weights": [value.clone() for m in modules for value in m.state_dict().values()],
        "classes": [type(part) for m in modules for part in m.modules()],
        "hooks": sum(
            len(p._forward_hooks) + len(p._forward_pre_hooks) for m in modules for p in m.modules()
        ),
        "attention": [type(p).__name__ for p in unet.attn_processors.values()],
    }


def _assert_same_state(edit: type[Edit], before: dict[str, Any], after: dict[str, Any]) -> None:
    same = all(map(torch.equal, before["weights"], after["weights"]))
    assert same, f"{edit.name}: weights are not restored"
    for part in ("classes", "hooks", "attention"):
        assert before[part] == after[part], f"{edit.name}: {part} are not restored"


__all__ = [
    "FAMILIES",
    "PROMPT",
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
