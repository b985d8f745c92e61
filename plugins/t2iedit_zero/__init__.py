"""Multi-Concept T2I-Zero as an edit: correction by similarities (arXiv 2310.07419, Algorithm 1)."""

from collections.abc import Callable
from typing import Literal

from pydantic import Field

import t2iedit
from t2iedit import Kind, Phrase, Run, TextEmbedding, Tokens
from t2iedit_zero.similarity import correct


class T2IZero(t2iedit.Edit):
    """Correct the chosen concepts' embeddings by their similarities (T2I-Zero, arXiv 2310.07419, Algorithm 1).

    No values of tau, gamma and alpha are known from the paper; the defaults are our choice.
    """

    name = "t2i_zero"
    example = {"concepts": ["red cat", "blue dog"]}
    neutral = {"concepts": ["red cat", "blue dog"], "alpha": 0.0}

    class Options(t2iedit.Options):
        concepts: list[Phrase] = Field(
            min_length=1, description="Words of the prompt whose embeddings are corrected."
        )
        alpha: float = Field(
            0.3, ge=0, le=1, description="Strength: 0 keeps each row, 1 replaces it."
        )
        tau: float = Field(
            0.1, ge=0, le=1, description="Similarities up to this share of the largest are dropped."
        )
        gamma: int = Field(
            4, ge=0, description="Tokens further than this from the concept are left out."
        )
        normalise: Literal["before", "after"] = Field(
            "before", description="Divide by the largest similarity before or after the threshold."
        )
        include_self: bool = Field(True, description="Whether a concept's own row takes part.")
        scope: Literal["words", "words+eot", "words+eot+pad"] = Field(
            "words", description="The rows that take part; BOS never does."
        )

    def check(self, run: Run) -> None:
        for encoder in run.model.encoders:
            self._rows(encoder.tokenize(run.prompt), run)

    def edit_embedding(self, embedding: TextEmbedding, run: Run) -> TextEmbedding:
        if self.options.alpha == 0:
            return embedding
        hidden = correct(
            embedding.hidden,
            self._rows(embedding.tokens, run),
            embedding.tokens.of(*SCOPES[self.options.scope]),
            tau=self.options.tau,
            gamma=self.options.gamma,
            alpha=self.options.alpha,
            normalise=self.options.normalise,
            include_self=self.options.include_self,
        )
        return embedding.with_hidden(hidden)

    def _rows(self, tokens: Tokens, run: Run) -> list[int]:
        spans = [run.span(phrase) for phrase in self.options.concepts]
        return list(dict.fromkeys(index for span in spans for index in tokens.indices(span)))


SCOPES = {
    "words": (Kind.WORD,),
    "words+eot": (Kind.WORD, Kind.EOT),
    "words+eot+pad": (Kind.WORD, Kind.EOT, Kind.PAD),
}


@t2iedit.hookimpl
def register_edits(register: Callable[[type[t2iedit.Edit]], None]) -> None:
    register(T2IZero)
