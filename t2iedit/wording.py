"""What was typed and what the encoders read instead, and which characters of the one stand for which of the other."""

from dataclasses import dataclass

from t2iedit.spans import Span


@dataclass(frozen=True, slots=True)
class Wording:
    """A prompt as `typed`, and as the `text` that is tokenised; `origins` has a range of `typed` for each character of `text`."""

    typed: str
    text: str
    origins: tuple[Span, ...]

    @classmethod
    def of(cls, typed: str) -> "Wording":
        """The prompt as it was typed."""
        return cls(typed, typed, tuple(Span(i, i + 1) for i in range(len(typed))))

    def replaced(self, span: Span, words: str) -> "Wording":
        """With `words` in the place of these characters of `text`, and all of them standing for what stood there.

        Spaces keep the words apart from their neighbours, so that no tokenizer joins them.
        """
        before, after = self.text[: span.start], self.text[span.end :]
        lead = " " if before and not before[-1].isspace() else ""
        trail = " " if after and not after[0].isspace() else ""
        put = f"{lead}{words}{trail}"
        origins = (Span(*self.origin(span.start, span.end)),) * len(put)
        return Wording(
            self.typed,
            before + put + after,
            self.origins[: span.start] + origins + self.origins[span.end :],
        )

    def origin(self, start: int, end: int) -> tuple[int, int]:
        """The range of `typed` that the characters `start` up to `end` of `text` stand for."""
        covered = self.origins[start:end]
        if not covered:
            place = self.origins[start - 1].end if start else 0
            return place, place
        return min(span.start for span in covered), max(span.end for span in covered)
