"""A t2iedit plugin: make chosen words of the prompt louder."""

from collections.abc import Callable

from pydantic import Field

import t2iedit
from t2iedit import Phrase, Run, TextEmbedding


class Hello(t2iedit.Edit):
    """Scale the rows of chosen words: over 1 they count for more, under 1 for less."""

    name = "hello"
    example = {"words": ["red cat"]}
    neutral = {"words": ["red cat"], "scale": 1.0}

    class Options(t2iedit.Options):
        words: list[Phrase] = Field(min_length=1, description="Words of the prompt to scale.")
        scale: float = Field(1.5, ge=0, le=10, description="The factor; 1 changes nothing.")

    def edit_embedding(self, embedding: TextEmbedding, run: Run) -> TextEmbedding:
        hidden = embedding.hidden.clone()
        for phrase in self.options.words:
            hidden[embedding.tokens.indices(run.span(phrase))] *= self.options.scale
        return embedding.with_hidden(hidden)


@t2iedit.hookimpl
def register_edits(register: Callable[[type[t2iedit.Edit]], None]) -> None:
    register(Hello)
