"""DECOR as an edit: project the prompt's embeddings away from undesired content (arXiv 2412.09169)."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field, field_validator, model_validator

import t2iedit
from t2iedit import EditNotSupported, Kind, Phrase, Prompt, Run, TextEmbedding, encode_texts
from t2iedit_decor.projection import project_out, removed_energy, row_space

ROWS = {
    "words": (Kind.WORD,),
    "words+eot": (Kind.WORD, Kind.EOT),
    "words+eot+pad": (Kind.WORD, Kind.EOT, Kind.PAD),
}
NOTHING_LEFT = 0.999
"""The share of the words' energy whose removal leaves no prompt."""


class Decor(t2iedit.Edit):
    """Project the prompt away from the subspace of undesired content (DECOR, arXiv 2412.09169).

    X' = X - alpha X V V^T, V spanning the rows of undesired prompts or phrases, for each encoder apart. Which rows span
    and which are edited the paper's abstract does not say: the defaults are our choice.
    """

    name = "decor"
    example = {"undesired": ["fog"], "alpha": 0.8}
    neutral = {"undesired": ["fog"], "alpha": 0.0}

    class Options(t2iedit.Options):
        undesired: list[Prompt] = Field(
            [],
            description="Prompts whose meaning is removed, each encoded on its own; placeholders of learned concepts too.",
        )
        phrases: list[Phrase] = Field(
            [], description="Words of the prompt itself that are undesired."
        )
        alpha: float = Field(
            1.0, ge=0, le=1, description="How much of it is removed; 0 leaves the prompt alone."
        )
        span: Literal["words", "words+eot", "words+eot+pad"] = Field(
            "words", description="Which rows of the undesired prompts span what is removed."
        )
        rows: Literal["all", "words"] = Field(
            "all", description="Which rows of the prompt are edited: all but BOS, or its words."
        )
        rank_tol: float = Field(
            1e-3,
            ge=0,
            lt=1,
            description="Directions weaker than this share of the strongest do not count.",
        )
        rank: int | None = Field(None, ge=1, description="The most directions removed.")
        energy: float = Field(
            1.0,
            gt=0,
            le=1,
            description="Strongest directions are taken until they hold this share of the energy.",
        )
        soft: float = Field(
            0.0, ge=0, description="Weaker directions are removed less: s^2 / (s^2 + soft s_max^2)."
        )
        centre: bool = Field(False, description="Keep what all rows of the prompt share.")

        @field_validator("undesired")
        @classmethod
        def _says_something(cls, undesired: list[str]) -> list[str]:
            if not all(text.strip() for text in undesired):
                raise ValueError("an undesired prompt must not be empty; say what to remove")
            return undesired

        @model_validator(mode="after")
        def _something_undesired(self) -> "Decor.Options":
            if not self.undesired and not self.phrases:
                raise ValueError("nothing is undesired; give undesired=PROMPT or phrases=WORDS")
            return self

    @classmethod
    def in_words(cls, facts: dict[str, Any]) -> str:
        reported = [name for name in facts.get("change", {}) if f"directions ({name})" in facts]
        parts = []
        for encoder in reported:
            share, rank = facts[f"energy removed ({encoder})"], facts[f"directions ({encoder})"]
            along = f"{rank} direction{'s' * (rank != 1)}" + f" ({encoder})" * (len(reported) > 1)
            parts.append(f"{100 * share:.0f} % of the energy along {along}")
        removed = [f"removed {' and '.join(parts)}"] * bool(parts)
        return "; ".join([*removed, super().in_words(facts)])

    def check(self, run: Run) -> None:
        for phrase in self.options.phrases:
            for encoder in run.model.encoders:
                run.rows(phrase, run.read_by(encoder))

    def edit_embedding(self, embedding: TextEmbedding, run: Run) -> TextEmbedding:
        if self.options.alpha == 0:
            return embedding
        edited = self._edited_rows(embedding)
        centre = embedding.hidden[edited].float().mean(dim=0) if self.options.centre else None
        undesired = self._undesired(embedding, run)
        basis = row_space(
            undesired if centre is None else undesired - centre,
            self.options.rank_tol,
            rank=self.options.rank,
            energy=self.options.energy,
            soft=self.options.soft,
        )
        hidden = embedding.hidden.clone()
        hidden[edited] = project_out(hidden[edited], basis, self.options.alpha, centre)
        self._check_remainder(embedding, hidden)
        self._report(run, embedding, hidden, edited, len(basis))
        return embedding.with_hidden(hidden)

    def _undesired(self, embedding: TextEmbedding, run: Run) -> torch.Tensor:
        """The rows X~, by the run's own encoder: its LoRAs act, and placeholders are their learned concepts."""
        encoder = run.model.encoder(embedding.tokens.encoder)
        kinds = ROWS[self.options.span]
        others = encode_texts(run, encoder, self.options.undesired)
        rows = [other.hidden[other.tokens.of(*kinds)] for other in others]
        for phrase in self.options.phrases:
            rows.append(embedding.hidden[run.rows(phrase, embedding.tokens)])
        return torch.cat(rows)

    def _edited_rows(self, embedding: TextEmbedding) -> list[int]:
        return embedding.tokens.of(
            *ROWS["words" if self.options.rows == "words" else "words+eot+pad"]
        )

    def _check_remainder(self, embedding: TextEmbedding, hidden: torch.Tensor) -> None:
        words = embedding.tokens.words
        if words and removed_energy(embedding.hidden[words], hidden[words]) > NOTHING_LEFT:
            raise EditNotSupported(
                f'what decor is to remove spans the whole prompt "{embedding.tokens.text}", so nothing of it would be'
                " left; name less of it, or lower alpha"
            )

    def _report(
        self, run: Run, embedding: TextEmbedding, hidden: torch.Tensor, edited: list[int], rank: int
    ) -> None:
        share = removed_energy(embedding.hidden[edited], hidden[edited])
        name = embedding.tokens.encoder
        run.record(
            self, **{f"directions ({name})": rank, f"energy removed ({name})": round(share, 4)}
        )


@t2iedit.hookimpl
def register_edits(register: Callable[[type[t2iedit.Edit]], None]) -> None:
    register(Decor)
