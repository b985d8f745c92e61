"""An encoder's tokens as HTML: a chip for each, with what it is near to in the vocabulary."""

import html

from t2iedit.inspection import EncoderFacts, TokenFacts

SHOWN = 3
"""Nearest pieces that a chip names; its title names all that are known."""


def chips(facts: EncoderFacts) -> str:
    """The encoder's name over the chips of its tokens."""
    inside = "".join(chip(token) for token in facts.tokens)
    name = html.escape(facts.encoder)
    return f'<h4>Encoder {name}</h4><ol class="chips" aria-label="tokens of {name}">{inside}</ol>'


def chip(token: TokenFacts) -> str:
    """Piece, id and norm; whether it is edited and by how much; the nearest pieces."""
    near = [f"{piece} {cosine:.2f}" for piece, cosine in token.nearest]
    norm = f"norm {token.norm_before:.2f}"
    change = ""
    if token.edited:
        norm += f" → {token.norm_after:.2f}"
        change = f'<span class="change">edited by {100 * token.change:.0f} %</span>'
    lines = (
        f"<b>{html.escape(token.piece)}</b>",
        f"<small>id {token.id}</small>",
        f"<small>{norm}</small>",
        change,
        f'<small class="near">near {html.escape(", ".join(near[:SHOWN]))}</small>',
    )
    kind = "edited" if token.edited else "kept"
    title = html.escape(f"nearest in the vocabulary: {', '.join(near)}", quote=True)
    return f'<li class="{kind}" title="{title}">{"".join(line for line in lines if line)}</li>'
