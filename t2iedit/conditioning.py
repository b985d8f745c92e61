"""What the denoiser is told: both prompts through every encoder, and how that changes as it works."""

from dataclasses import dataclass

from t2iedit.text import TextEmbedding

Embeddings = tuple[TextEmbedding, ...]
"""One prompt, one `TextEmbedding` per encoder, in the model's order."""


@dataclass(frozen=True, slots=True)
class Conditioning:
    """The prompt's and the negative prompt's embeddings; `negative` is None without guidance.

    `changes` are (fraction of the denoising, conditioning from there on), in rising order; theirs are empty.
    """

    prompt: Embeddings
    negative: Embeddings | None
    changes: tuple[tuple[float, "Conditioning"], ...] = ()

    def at(self, fraction: float) -> "Conditioning":
        """What holds at this fraction of the denoising, 0 at its first step."""
        holding = self
        for start, later in self.changes:
            if fraction >= start:
                holding = later
        return holding
