"""DECOR as an edit: project the prompt's embeddings away from undesired content (arXiv 2412.09169)."""

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field, field_validator

import t2iedit
from t2iedit import Kind, Prompt, Run, TextEmbedding, TextEncoder
from t2iedit_decor.projection import project_out, removed_energy, row_space


class Decor(t2iedit.Edit):
    """Project the prompt away from the subspace of undesired prompts (DECOR, arXiv 2412.09169).

    X' = X - alpha X V V^T, V spanning the rows of the undesired prompts' word tokens, for each encoder apart. Which
    rows span and which are edited the paper's abstract does not say: the defaults are our choice.
    """

    name = "decor"
    example = {"undesired": ["fog"], "alpha": 0.8}
    neutral = {"undesired": ["fog"], "alpha": 0.0}

    class Options(t2iedit.Options):
        undesired: list[Prompt] = Field(
            min_length=1, description="Prompts whose meaning is removed, each encoded on its own."
        )
        alpha: float = Field(
            1.0, ge=0, le=1, description="How much of it is removed; 0 leaves the prompt alone."
        )
        span: Literal["words", "words+eot"] = Field(
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

        @field_validator("undesired")
        @classmethod
        def _says_something(cls, undesired: list[str]) -> list[str]:
            if not all(text.strip() for text in undesired):
                raise ValueError("an undesired prompt must not be empty; say what to remove")
            return undesired

    def edit_embedding(self, embedding: TextEmbedding, run: Run) -> TextEmbedding:
        if self.options.alpha == 0:
            return embedding
        basis = row_space(
            self._undesired(run.model.encoder(embedding.tokens.encoder)), self.options.rank_tol
        )
        edited = self._edited_rows(embedding)
        hidden = embedding.hidden.clone()
        hidden[edited] = project_out(hidden[edited], basis, self.options.alpha)
        self._report(run, embedding, hidden, edited, len(basis))
        return embedding.with_hidden(hidden)

    def _undesired(self, encoder: TextEncoder) -> torch.Tensor:
        """The rows X~ of all undesired prompts, by the run's own encoder, so with whatever customises it."""
        kinds = (Kind.WORD, Kind.EOT) if self.options.span == "words+eot" else (Kind.WORD,)
        embeddings = [encoder.encode(encoder.tokenize(text)) for text in self.options.undesired]
        return torch.cat([e.hidden[e.tokens.of(*kinds)] for e in embeddings])

    def _edited_rows(self, embedding: TextEmbedding) -> list[int]:
        if self.options.rows == "words":
            return embedding.tokens.words
        return embedding.tokens.of(Kind.WORD, Kind.EOT, Kind.PAD)

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
