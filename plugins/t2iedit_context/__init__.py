"""CoRe as an edit: learned concepts wherever their placeholders stand (arXiv 2408.15914)."""

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

from pydantic import Field
from torch import Tensor

import t2iedit
from t2iedit import EditNotSupported, File, Run, SpanTruncated, TextEncoder, Tokens, Wording
from t2iedit_context.checks import check_differentiable
from t2iedit_context.diagnostics import context_similarity, described
from t2iedit_context.embeddings import Concept, check_concepts, read_concept
from t2iedit_context.objective import Part, Weights
from t2iedit_context.placing import Vectors, placed, places, stand_in, worded
from t2iedit_context.regularisation import ContextsDiffer
from t2iedit_context.test_time import optimised


class Core(t2iedit.Edit):
    """Put learned concepts wherever their placeholders stand in the prompt or the negative prompt (CoRe, arXiv 2408.15914).

    Files of `t2iedit core learn`, or textual inversions of diffusers, A1111 or SDXL. Each vector takes the place of one
    input embedding; no tokenizer is touched.
    """

    name = "core"
    negative = True

    class Options(t2iedit.Options):
        concept: list[File] = Field(
            min_length=1,
            description="Files of learned concepts; their placeholders are typed in the prompt.",
        )
        optimise: int = Field(
            0,
            ge=0,
            le=1000,
            description="Steps of test-time optimisation for this prompt; CoRe takes 10.",
        )
        learning_rate: float = Field(
            5e-4,
            gt=0,
            le=1,
            description="Of the test-time optimisation; CoRe's program takes 5e-4.",
        )
        embedding_weight: float = Field(
            1.5e-4,
            ge=0,
            description="lambda_emb: how much the context's embeddings count in it.",
        )
        attention_weight: float = Field(
            0.05,
            ge=0,
            description="lambda_attn: how much the attention to the context counts in it.",
        )

    @classmethod
    def in_words(cls, facts: dict[str, Any]) -> str:
        put = [
            f"{name} as {held['vectors']} learned vector{'s' * (held['vectors'] != 1)}"
            for name, held in facts.get("concepts", {}).items()
        ]
        return f"put in {' and '.join(put)}" if put else super().in_words(facts)

    @cached_property
    def concepts(self) -> list[Concept]:
        """What the files hold, the longest name first, since one may be part of another."""
        read = [read_concept(path) for path in self.options.concept]
        return sorted(read, key=lambda concept: -len(concept.placeholder))

    @property
    def _names(self) -> list[str]:
        return [concept.placeholder for concept in self.concepts]

    def check(self, run: Run) -> None:
        check_concepts(self.concepts, run.model)
        texts = [run.prompt, run.negative or ""]
        for concept in self.concepts:
            if not any(places(text, concept.placeholder, self._names) for text in texts):
                raise EditNotSupported(
                    f'the placeholder "{concept.placeholder}" stands neither in the prompt "{run.prompt}" nor in the'
                    " negative prompt; type it where the concept should be"
                )
            for encoder in run.model.encoders:
                if concept.learned_elsewhere(encoder):
                    run.warn(
                        f'"{concept.placeholder}" was learned on another text encoder of the same size'
                        f" ({concept.made.get('model', 'unknown')}); it may look different here"
                    )

        if self.options.optimise:
            self._check_optimisable(run)

    def _check_optimisable(self, run: Run) -> None:
        patching = [edit.name for edit in run.edits if "patch_model" in edit.stages]
        if patching and self.options.attention_weight:
            raise EditNotSupported(
                f"core cannot optimise through a denoiser that {patching[0]} has changed; leave out that edit, or"
                " optimise, or set attention_weight=0"
            )
        if self.options.attention_weight:
            check_differentiable(run.model)
        nameless = [c.placeholder for c in self.concepts if c.category is None]
        if nameless:
            raise EditNotSupported(
                f'core cannot optimise "{nameless[0]}", whose file names no category to compare it with; add one with:'
                " t2iedit core convert FILE -o NEW --category WORD"
            )

    def edit_prompt(self, prompt: Wording, run: Run) -> Wording:
        if prompt.typed == run.prompt:
            run.record(self, concepts=self._facts(prompt, run))
        return self._worded(prompt, run, self.concepts)

    def edit_token_embeds(self, embeds: Tensor, tokens: Tokens, run: Run) -> Tensor:
        encoder = run.model.encoder(tokens.encoder)
        for concept in self.concepts:
            vectors = self._vectors(concept, tokens.text, run)[encoder.name]
            embeds = placed(embeds, tokens, concept.placeholder, vectors, self._names)
        return embeds

    def _vectors(self, concept: Concept, text: str, run: Run) -> Vectors:
        """The file's vectors, and in the prompt those optimised for it if asked for."""
        if not self.options.optimise or text != run.prompt:
            return concept.vectors
        if run not in self._optimised:
            self._optimised[run] = self._optimise(run)
        return self._optimised[run].get(concept.placeholder, concept.vectors)

    @cached_property
    def _optimised(self) -> WeakKeyDictionary[Run, dict[str, Vectors]]:
        return WeakKeyDictionary()

    def _optimise(self, run: Run) -> dict[str, Vectors]:
        options = self.options
        present = [c for c in self.concepts if places(run.prompt, c.placeholder, self._names)]
        if not present:
            return {}
        try:
            done = optimised(
                run.model,
                run.prompt,
                [Part(c.placeholder, c.category or "", c.count) for c in present],
                {c.placeholder: c.vectors for c in present},
                steps=options.optimise,
                learning_rate=options.learning_rate,
                weights=Weights(options.embedding_weight, options.attention_weight),
            )
        except ContextsDiffer as error:
            raise EditNotSupported(
                "core cannot optimise in a prompt that the encoder's window cuts off; shorten it, or leave out optimise"
            ) from error
        run.record(self, optimised={"losses before": done.before, "losses after": done.after})
        return done.vectors

    def _worded(self, prompt: Wording, run: Run, concepts: Iterable[Concept]) -> Wording:
        for concept in concepts:
            word = stand_in(concept.category, run.model.encoders)
            words = " ".join([word] * concept.count)
            prompt = worded(prompt, concept.placeholder, words, self._names)
        return prompt

    def _facts(self, prompt: Wording, run: Run) -> dict[str, Any]:
        """Which files they are, and what each concept is like and does to its context in this prompt."""
        return {
            concept.placeholder: {
                "file": concept.digest,
                "vectors": concept.count,
                "category": concept.category,
            }
            | {
                encoder.name: described(encoder, concept.for_encoder(encoder))
                | self._similarity(concept, prompt, encoder, run)
                for encoder in run.model.encoders
            }
            for concept in self.concepts
        }

    def _similarity(
        self, concept: Concept, prompt: Wording, encoder: TextEncoder, run: Run
    ) -> dict[str, float]:
        if concept.category is None or not places(prompt.text, concept.placeholder, self._names):
            return {}
        others = [other for other in self.concepts if other is not concept]
        try:
            similarity = context_similarity(
                encoder,
                self._worded(prompt, run, others),
                concept.placeholder,
                concept.for_encoder(encoder),
                concept.category,
                self._names,
            )
        # One window is looked at, and the concept or the end of its context may lie beyond it.
        except (SpanTruncated, ContextsDiffer):
            return {}
        return {"context similarity": round(similarity, 4)}


@t2iedit.hookimpl
def register_edits(register: Callable[[type[t2iedit.Edit]], None]) -> None:
    register(Core)
