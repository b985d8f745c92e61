"""How a concept is learned: every setting, CoRe's own values as defaults, and presets."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from t2iedit import UserError
from t2iedit_context.objective import Weights
from t2iedit_context.prompts import (
    Kind,
    check_templates,
    instance_prompt,
    preview_prompts,
    regularisation_prompts,
)
from t2iedit_context.regularisation import Form

Precision = Literal["no", "bf16", "fp16"]
SecondStage = Literal["lora", "full"]


class Settings(BaseModel):
    """What to learn and how. The values are CoRe's (arXiv 2408.15914, on SD 2.1 at 512 px) unless said otherwise.

    Both weights at 0 make plain textual inversion, which has no rescaling either.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    placeholder: str
    """The name that stands for the concept in prompts; no word yet."""
    category: str
    """The word it is a kind of: where its vectors begin, and what its context is compared with."""
    kind: Kind = "inanimate"
    """Which prompts it is tried in."""
    prompts: tuple[str, ...] | None = None
    """Templates instead of the kind's, with {} in the concept's place."""
    instance: str | None = None
    """What the pictures are said to show, instead of the kind's template."""
    vectors: int = Field(1, ge=1, le=32)
    """Input vectors, so tokens; more than CoRe's one is our extension."""
    steps: int = Field(300, ge=1, le=1_000_000)
    """Updates of the vectors."""
    batch_size: int = Field(6, ge=1, le=4096)
    """Pictures a step."""
    accumulation: int = Field(1, ge=1, le=4096)
    """Batches a step, one after another."""
    learning_rate: float = Field(5e-3, gt=0, le=10)
    """AdamW's."""
    weight_decay: float = Field(1e-2, ge=0, le=10)
    embedding_weight: float = Field(1.5e-4, ge=0)
    """lambda_emb: how much the context's embeddings count; 0 leaves them out."""
    attention_weight: float = Field(0.05, ge=0)
    """lambda_attn: how much the attention to the context counts; 0 leaves it out."""
    embedding_form: Form = "paper"
    """The paper's equation or what the authors' program computes."""
    attention_form: Form = "paper"
    attention_batch: int | None = Field(None, ge=1)
    """How many of a batch the attention term sees; half of it without, which keeps a step under twice plain
    inversion's. CoRe takes all. Ours."""
    rescale: tuple[int, int] = (120, 180)
    """A step whose norm is kept from the next one on, through the other; equal ones switch it off."""
    resolution: int | None = Field(None, ge=8, le=4096)
    """Side of the pictures; the model's own without."""
    augment: bool = True
    """Turn, mirror and crop the pictures."""
    crops: int = Field(120, ge=1, le=100_000)
    """Changed pictures encoded beforehand, from which batches are drawn. Ours."""
    precision: Precision | None = None
    """Of the denoiser's passes; what accelerate was launched with, without."""
    gradient_checkpointing: bool | None = None
    """Less memory for more time; on for large models without."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Of the batches and prompts that are drawn."""
    finetune_unet: SecondStage | None = None
    """A second stage, the vectors frozen, on the denoiser: all of it as in the paper, or a LoRA."""
    finetune_steps: int = Field(1000, ge=1, le=1_000_000)
    finetune_batch_size: int = Field(4, ge=1, le=4096)
    finetune_learning_rate: float | None = Field(None, gt=0, le=1)
    """That of `finetune_learning_rates` without."""
    finetune_learning_rates: dict[SecondStage, float] = {"full": 2e-6, "lora": 1e-4}
    """2e-6 as in the paper for all of it; a LoRA's is ours."""
    lora_rank: int = Field(8, ge=1, le=512)

    def __init__(self, **values: Any) -> None:
        """Raises `UserError` for what cannot be."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise UserError(_sentence(error)) from error

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        first, last = self.rescale
        if not 0 <= first <= last:
            raise ValueError(
                f"rescale={first}..{last}: a window's last step cannot be before its first, nor that before 0"
            )
        if self.attention_batch is not None and self.attention_batch > self.batch_size:
            raise ValueError(
                f"attention_batch={self.attention_batch} is more than batch_size={self.batch_size}"
            )
        check_templates([*self.templates, self.instance_template])
        return self

    @property
    def templates(self) -> tuple[str, ...]:
        return self.prompts or regularisation_prompts(self.kind)

    @property
    def instance_template(self) -> str:
        return self.instance or instance_prompt(self.kind)

    @property
    def previewed(self) -> tuple[str, ...]:
        if self.prompts is None:
            return preview_prompts(self.kind)
        return (self.instance_template, *self.prompts[:3])

    @property
    def regularised(self) -> bool:
        """Whether this is more than plain textual inversion."""
        return bool(self.embedding_weight or self.attention_weight)

    @property
    def rescaling(self) -> tuple[int, int]:
        """The window of norm rescaling; of no length in plain textual inversion."""
        return self.rescale if self.regularised else (0, 0)

    @property
    def weights(self) -> Weights:
        return Weights(
            self.embedding_weight,
            self.attention_weight,
            self.embedding_form,
            self.attention_form,
        )

    @property
    def attended(self) -> int:
        """How many of a batch the attention term sees."""
        return self.attention_batch or -(-self.batch_size // 2)

    @property
    def rate_of_unet(self) -> float:
        if self.finetune_learning_rate is not None:
            return self.finetune_learning_rate
        return self.finetune_learning_rates[self.finetune_unet or "lora"]


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "shapes": {
        "kind": "shape",
        "augment": False,
        "steps": 100,
        "learning_rate": 1e-3,
        "embedding_weight": 0.5,
        "attention_weight": 100.0,
        "rescale": (40, 60),
        "finetune_steps": 200,
        "finetune_learning_rates": {"full": 3e-4, "lora": 1e-3},
    },
}
"""What differs from the defaults. "shapes" is for the bundled model, whose objects lose their meaning when turned. Its
rates of the vectors and of all of the denoiser and its two weights are tuned on the tuning concepts of
benchmarks/personalization_tuning.py, which no result is reported on; the LoRA's rate is a guess."""


def preset_for(model_name: str) -> str:
    """The preset that a model is meant to have."""
    return "shapes" if model_name == "shapes" else "paper"


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, UserError):
        return str(cause)
    key = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return f'learning has no setting "{key}"; it has {", ".join(Settings.model_fields)}'
    if first["type"] == "missing":
        return f'learning needs "{key}"'
    given = f"{key}={first['input']!r}: " if key else ""
    return f"{given}{message[0].lower()}{message[1:]}"
