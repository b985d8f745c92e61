"""What a step of CoRe's first stage costs beside one of plain textual inversion."""

import time
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from personalization_concepts import Unknown, pictures_of
from t2iedit_context.inversion import EmbeddingStage
from t2iedit_context.latents import encode_pictures
from t2iedit_context.loop import Setup
from t2iedit_context.settings import PRESETS, Settings

from t2iedit.shapes.evaluate import Row

PLAIN = "plain inversion"
STEPS: dict[str, dict[str, Any]] = {
    PLAIN: {"embedding_weight": 0.0, "attention_weight": 0.0},
    "without CAR": {"attention_weight": 0.0},
    "full": {},
    "full, attention of the whole batch": {"attention_batch": 6},
}


def cost_rows(model: Any, unknown: Unknown, repeats: int) -> list[Row]:
    """Seconds of a step over plain inversion's, in turns: the median of the ratios and their quartiles."""
    with torch.enable_grad():
        stages = {name: _stage(model, unknown, own) for name, own in STEPS.items()}
        times: dict[str, list[float]] = {name: [] for name in STEPS}
        for step in range(repeats + 1):
            for name, stage in stages.items():
                begin = time.perf_counter()
                stage.losses(step, 0)
                if model.device.type == "cuda":
                    torch.cuda.synchronize()
                times[name].append(time.perf_counter() - begin)
    # The first is for warming up.
    plain = times[PLAIN][1:]
    rows = [_row(PLAIN, "seconds of a step", plain)]
    for name in STEPS:
        ratios = [mine / base for mine, base in zip(times[name][1:], plain, strict=True)]
        rows.append(_row(name, "step over plain inversion's", ratios))
    return rows


def _stage(model: Any, unknown: Unknown, own: dict[str, Any]) -> EmbeddingStage:
    given = PRESETS["shapes"] | {"kind": unknown.kind, "batch_size": 6} | own
    settings = Settings(placeholder=unknown.placeholder, category=unknown.category, **given)
    size = min(model.defaults.size)
    bank = encode_pictures(model, pictures_of(unknown, size), size, 4, 0, augment=False)
    return EmbeddingStage(Setup(model, settings, bank, nullcontext, torch.float32))


def _row(name: str, metric: str, values: list[float]) -> Row:
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return Row(name, metric, len(values), middle, low, high)
