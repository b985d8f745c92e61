"""Multi-Concept T2I-Zero as an edit (arXiv 2310.07419): Algorithm 1 on embeddings, Algorithm 2 on attention."""

import math
from collections.abc import Callable
from functools import cached_property
from itertools import combinations
from typing import Any, Literal
from weakref import WeakKeyDictionary

from pydantic import Field

import t2iedit
from t2iedit import (
    EditNotSupported,
    Kind,
    Phrase,
    Probabilities,
    Run,
    Site,
    TextEmbedding,
    Tokens,
)
from t2iedit_zero.concepts import found_concepts
from t2iedit_zero.similarity import Maximum, Normalise, correct
from t2iedit_zero.suppression import Heads, Renormalise, suppress


class T2IZero(t2iedit.Edit):
    """Keep several concepts apart (Multi-Concept T2I-Zero, arXiv 2310.07419).

    Algorithm 1 corrects the concepts' embeddings by their similarities, Algorithm 2 suppresses at each pixel all concepts
    but the strongest. The paper's values are not known; all defaults are our choice.
    """

    name = "t2i_zero"
    example = {"concepts": ["red cat", "blue dog"], "suppression": 1.0, "smallest_map": 1}
    neutral = {"concepts": ["red cat", "blue dog"], "alpha": 0.0, "suppression": 0.0}

    class Options(t2iedit.Options):
        concepts: list[Phrase] = Field(
            [], description="Words of the prompt, one entry a concept; found in it if left out."
        )
        alpha: float = Field(
            0.3,
            ge=0,
            le=1,
            description="Correction by similarities: 0 keeps rows, 1 replaces them.",
        )
        tau: float = Field(
            0.1, ge=0, le=1, description="Similarities up to this share of the largest are dropped."
        )
        gamma: int = Field(
            4, ge=0, description="Tokens further than this from the concept are left out."
        )
        normalise: Normalise = Field(
            "before", description="Divide by the largest similarity before or after the threshold."
        )
        maximum: Maximum = Field(
            "all", description="The largest similarity of all, of each row, or of each feature."
        )
        include_self: bool = Field(True, description="Whether a concept's own row takes part.")
        simultaneous: bool = Field(
            True, description="All concepts from the rows as they were, or one after another."
        )
        scope: Literal["words", "words+eot", "words+eot+pad"] = Field(
            "words", description="The rows that take part; BOS never does."
        )
        suppression: float = Field(
            0.0, ge=0, le=1, description="Suppression: how much of the weaker concepts goes."
        )
        suppress_until: float = Field(
            1 / 3, gt=0, le=1, description="Suppress in this first part of the denoising."
        )
        smallest_map: int = Field(
            16, ge=1, description="Suppress in attention maps of at least this side squared."
        )
        heads: Heads = Field(
            "mean", description="Attention heads decide together, or each for itself."
        )
        balance: bool = Field(
            False, description="Compare each concept's map by its own mean, not as it is."
        )
        renormalise: Renormalise = Field(
            "none", description="What is suppressed is lost, goes to the winner, or to all tokens."
        )

    @classmethod
    def in_words(cls, facts: dict[str, Any]) -> str:
        named = " and ".join(facts.get("concepts", []))
        return (
            f"kept apart {named}; {super().in_words(facts)}" if named else super().in_words(facts)
        )

    def check(self, run: Run) -> None:
        concepts = self._concepts(run)
        run.record(self, concepts=concepts)
        groups = [self._groups(run.read_by(e), run) for e in run.model.encoders]
        if self.options.suppression == 0:
            return
        if len(concepts) < 2:
            raise EditNotSupported(
                "suppression keeps concepts apart, so it needs two of them at least, and here there is only"
                f' "{concepts[0]}"; name more in concepts, or set suppression=0'
            )
        for (first, a), (second, b) in combinations(zip(concepts, groups[0], strict=True), 2):
            if set(a) & set(b):
                raise EditNotSupported(
                    f'the concepts "{first}" and "{second}" share words of the prompt, so neither can be suppressed'
                    " in favour of the other; name words that do not overlap"
                )

    def edit_embedding(self, embedding: TextEmbedding, run: Run) -> TextEmbedding:
        if self.options.alpha == 0:
            return embedding
        groups = self._groups(embedding.tokens, run)
        hidden = correct(
            embedding.hidden,
            list(dict.fromkeys(index for group in groups for index in group)),
            embedding.tokens.of(*SCOPES[self.options.scope]),
            tau=self.options.tau,
            gamma=self.options.gamma,
            alpha=self.options.alpha,
            normalise=self.options.normalise,
            maximum=self.options.maximum,
            include_self=self.options.include_self,
            simultaneous=self.options.simultaneous,
        )
        return embedding.with_hidden(hidden)

    def attends(self, run: Run) -> bool:
        return self.options.suppression > 0

    def opens(self, site: Site, run: Run) -> bool:
        large = math.sqrt(site.height * site.width) >= self.options.smallest_map
        return (
            self.options.suppression > 0 and large and site.fraction < self.options.suppress_until
        )

    def edit_attention(self, probs: Probabilities, site: Site, run: Run) -> Probabilities:
        return suppress(
            probs,
            self._known_groups(run),
            (site.height, site.width),
            strength=self.options.suppression,
            heads=self.options.heads,
            balance=self.options.balance,
            renormalise=self.options.renormalise,
        )

    def _known_groups(self, run: Run) -> list[list[int]]:
        """Each concept's columns of the maps, looked up once a run: there are hundreds of maps in one."""
        tokens, groups = self._looked_up.get(run, (None, []))
        if tokens is not run.tokens[0]:
            groups = self._groups(run.tokens[0], run)
            self._looked_up[run] = run.tokens[0], groups
        return groups

    @cached_property
    def _looked_up(self) -> WeakKeyDictionary[Run, tuple[Tokens, list[list[int]]]]:
        return WeakKeyDictionary()

    def _groups(self, tokens: Tokens, run: Run) -> list[list[int]]:
        """Each concept's tokens."""
        return [run.rows(phrase, tokens) for phrase in self._concepts(run)]

    def _concepts(self, run: Run) -> list[str]:
        concepts = self.options.concepts or found_concepts(run.prompt)
        if not concepts:
            raise EditNotSupported(
                f'no concepts were found in the prompt "{run.prompt}"; name them: concepts="red cat,blue dog"'
            )
        return concepts


SCOPES = {
    "words": (Kind.WORD,),
    "words+eot": (Kind.WORD, Kind.EOT),
    "words+eot+pad": (Kind.WORD, Kind.EOT, Kind.PAD),
}


@t2iedit.hookimpl
def register_edits(register: Callable[[type[t2iedit.Edit]], None]) -> None:
    register(T2IZero)
