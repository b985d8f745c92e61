"""What a concept looks like so far: a strip of pictures, always of the same prompts and the same noise."""

from dataclasses import dataclass
from pathlib import Path

import t2iedit
from t2iedit import Model
from t2iedit_context.embeddings import Concept, write_concept
from t2iedit_context.prompts import filled


@dataclass(frozen=True, slots=True)
class Previews:
    """Strips in `folder` every so many steps; 0 makes none."""

    model: Model
    prompts: tuple[str, ...]
    folder: Path
    every: int
    seed: int

    def due(self, step: int) -> bool:
        return self.every > 0 and step % self.every == 0

    def draw(self, concept: Concept, name: str) -> Path:
        """The prompts with the concept as it is, in one strip."""
        from t2iedit_context import Core

        latest = self.folder / "latest.safetensors"
        write_concept(concept, latest)
        prompts = [filled(p, concept.placeholder, concept.category or "") for p in self.prompts]
        images = [
            t2iedit.generate(
                self.model,
                t2iedit.Request(prompt, seed=self.seed, edits=[Core(concept=[str(latest)])]),
            ).image
            for prompt in prompts
        ]
        path = self.folder / f"{name}.png"
        t2iedit.save_image(t2iedit.labelled_grid([images], prompts, title=name), path)
        return path
