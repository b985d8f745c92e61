"""CoRe's first stage: a concept's vectors, everything else frozen (arXiv 2408.15914)."""

from collections.abc import Generator
from contextlib import closing, nullcontext
from random import Random
from typing import Any

import torch
from torch import Tensor

from t2iedit import Model, TextEmbedding
from t2iedit_context.latents import moved
from t2iedit_context.loop import Setup
from t2iedit_context.objective import (
    Noised,
    Pair,
    Part,
    accumulate,
    context_losses,
    diffusion_loss,
    encoded,
    make_pair,
    noise_schedule,
)
from t2iedit_context.probe import Probe, probed
from t2iedit_context.prompts import filled
from t2iedit_context.regularisation import rescaled
from t2iedit_context.settings import Settings


class EmbeddingStage:
    """The vectors of one concept, everything else frozen: L_diff + lambda_emb L_emb + lambda_attn L_attn.

    A template for the two regularisers is drawn for each step; the diffusion loss always has the instance prompt. The
    gradient of each pass is taken before the next begins, so that only one graph is held at a time.
    """

    name = "embedding"

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.model, self.settings = setup.model, setup.settings
        settings = self.settings
        self.steps, self.schedule = settings.steps, noise_schedule(self.model)
        self.vectors = initial_vectors(self.model, settings)
        self.leaves = list(self.vectors.values())
        self.optimizer = torch.optim.AdamW(
            self.leaves, lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.norms: list[float] | None = None
        self.pairs: dict[str, Pair] = {}
        self.part = Part(settings.placeholder, settings.category, settings.vectors)

    def losses(self, step: int, process: int) -> dict[str, Tensor]:
        totals: dict[str, Tensor] = {}
        share = 1 / self.settings.accumulation
        for part in range(self.settings.accumulation):
            random = Random(f"{self.settings.seed} embedding {step} {part} {process}")
            # Closed also when something breaks, so that the denoiser is then as it was.
            with closing(self._passes(random)) as passes:
                for losses in passes:
                    total = torch.stack(list(losses.values())).sum()
                    accumulate(total * share, self.leaves, self.setup.dtype)
                    for name, loss in losses.items():
                        own = loss.detach() * share
                        totals[name] = totals[name] + own if name in totals else own
        return totals

    def _passes(self, random: Random) -> Generator[dict[str, Tensor], None, None]:
        """One batch's losses, those that share a graph together; it may go before the next are asked for."""
        settings = self.settings
        drawn = self.setup.bank.draw(settings.batch_size, self.schedule, random)
        noisy = moved(drawn, self.model.device)
        embeddings = self.instance()
        with self.setup.precision():
            loss = diffusion_loss(self.model, embeddings, noisy)
        yield {"diffusion": loss}
        if settings.regularised:
            pair = self._pair(random.choice(settings.templates))
            opened = probed(self.model.denoiser) if settings.attention_weight else nullcontext()
            with opened as probe:
                yield self._context(pair, noisy.first(settings.attended), probe)

    def _context(self, pair: Pair, noisy: Noised, probe: Probe | None) -> dict[str, Tensor]:
        settings, concepts = self.settings, {self.settings.placeholder: self.vectors}
        losses = context_losses(
            self.model,
            pair,
            concepts,
            noisy,
            probe,
            settings.weights,
            self.setup.precision(),
        )
        if settings.attention_form == "code" and "attention" in losses:
            # The authors' form sums over the batch, of which this may be a part.
            losses["attention"] = losses["attention"] * (settings.batch_size / settings.attended)
        return losses

    def instance(self) -> tuple[TextEmbedding, ...]:
        """The pictures' prompt as the encoders see it with the vectors as they are."""
        pair = self._pair(self.settings.instance_template)
        return encoded(self.model, pair.tokens, {self.settings.placeholder: self.vectors})

    def _pair(self, template: str) -> Pair:
        if template not in self.pairs:
            prompt = filled(template, self.settings.placeholder, self.settings.category)
            self.pairs[template] = make_pair(self.model, prompt, [self.part])
        return self.pairs[template]

    @torch.no_grad()
    def finish(self, step: int) -> None:
        """Norm rescaling: from the step after the window's first through its last the norm stays as it was then."""
        first, last = self.settings.rescaling
        if step == first:
            self.norms = [float(leaf.norm()) for leaf in self.leaves]
        if self.norms and first < step <= last:
            for leaf, norm in zip(self.leaves, self.norms, strict=True):
                leaf.copy_(rescaled(leaf, norm))

    def state(self) -> dict[str, Any]:
        return {
            "leaves": {name: value.detach() for name, value in self.vectors.items()},
            "optimizer": self.optimizer.state_dict(),
            "norms": self.norms,
        }

    @torch.no_grad()
    def load(self, state: dict[str, Any]) -> None:
        for name, value in self.vectors.items():
            value.copy_(state["leaves"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.norms = state["norms"]


def initial_vectors(model: Model, settings: Settings) -> dict[str, Tensor]:
    """The category's own input vector, as often as the concept has vectors, for each encoder."""
    found = {}
    for encoder in model.encoders:
        word = encoder.embed(encoder.tokenize(settings.category))[1].detach().float()
        found[encoder.name] = word.repeat(settings.vectors, 1).requires_grad_()
    return found
