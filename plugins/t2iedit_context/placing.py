"""Concepts in prompts: a stand-in word where the placeholder was typed, and the learned vectors in its rows."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from t2iedit import Span, SpanTruncated, TextEncoder, Tokens, Wording, occurrences

Vectors = Mapping[str, Tensor]
"""Input vectors (vectors x width) by the encoder's name."""
FALLBACKS = ("thing", "object", "a", "x")
"""Words to stand in for a concept without a category that is one token; the last is one in every CLIP vocabulary."""


def is_one_token(word: str, encoders: Sequence[TextEncoder]) -> bool:
    """Whether every encoder reads the word as one token."""
    return all(len(encoder.tokenize(word).words) == 1 for encoder in encoders)


def stand_in(category: str | None, encoders: Sequence[TextEncoder]) -> str:
    """The one-token word in whose rows a concept's vectors are put: its category where that is one."""
    candidates = ([category] if category else []) + list(FALLBACKS)
    return next(word for word in candidates if is_one_token(word, encoders))


def places(text: str, placeholder: str, among: Sequence[str] = ()) -> list[Span]:
    """Where the placeholder stands, but not as a part of a longer one of those `among` which it is."""
    longer = [name for name in among if len(name) > len(placeholder)]
    taken = [span for name in longer for span in occurrences(text, name)]
    found = occurrences(text, placeholder)
    return [span for span in found if not any(span.overlaps(t.start, t.end) for t in taken)]


def worded(prompt: Wording, placeholder: str, words: str, among: Sequence[str] = ()) -> Wording:
    """The prompt with `words` wherever the placeholder stands, which is one `among` others."""
    # From the last, so that the places of those before stay as they are.
    for span in reversed(places(prompt.text, placeholder, among)):
        prompt = prompt.replaced(span, words)
    return prompt


def rows_where(tokens: Tokens, placeholder: str, among: Sequence[str] = ()) -> list[list[int]]:
    """The rows of whatever stands for each occurrence of a placeholder. Raises `SpanTruncated`."""
    return [tokens.indices(span) for span in places(tokens.text, placeholder, among)]


def rows_of(
    tokens: Tokens, placeholder: str, count: int, among: Sequence[str] = ()
) -> list[list[int]]:
    """The `count` rows of each occurrence of a concept. Raises `SpanTruncated` for one that the window cuts off."""
    found = rows_where(tokens, placeholder, among)
    if any(len(rows) != count for rows in found):
        # Its characters are within reach as soon as the first of its vectors is.
        raise SpanTruncated(
            f'"{placeholder}" lies at the end of the {len(tokens.ids)} tokens that the encoder "{tokens.encoder}" reads'
            f" and its {count} vectors do not fit; move it forward in the prompt, or shorten the prompt"
        )
    return found


def placed(
    embeds: Tensor,
    tokens: Tokens,
    placeholder: str,
    vectors: Tensor,
    among: Sequence[str] = (),
) -> Tensor:
    """The input embeddings with these vectors wherever the placeholder stands; differentiable in them."""
    found = rows_of(tokens, placeholder, len(vectors), among)
    if not found:
        return embeds
    embeds = embeds.clone()
    for rows in found:
        embeds[rows] = vectors.to(embeds)
    return embeds
