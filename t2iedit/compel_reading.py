"""Weights and blends as compel reads them (the extra `compel`), wrapped as embeddings that edits can go on with."""

from copy import copy
from itertools import takewhile
from typing import Any

import torch

from t2iedit.errors import EditNotSupported, InvalidRequest, said
from t2iedit.text import Kind, TextEmbedding, TextEncoder, Tokens
from t2iedit.weighting import Script


def encode(encoder: TextEncoder, script: Script) -> TextEmbedding:
    """What compel makes of the script with this encoder. Raises `InvalidRequest` and `EditNotSupported`.

    Of a blend the tokens are those of its first prompt. The pooled vector is the plain text's: compel does not weight
    it either, and would encode its own markup into it.
    """
    compel = _compel()
    # compel reads as many tokens at once as the tokenizer says, which for T5 is not what SD3 reads.
    tokenizer = copy(encoder.tokenizer)
    tokenizer.model_max_length = encoder.length
    reader = compel.Compel(
        tokenizer=tokenizer,
        text_encoder=encoder.transformer,
        truncate_long_prompts=False,
        returned_embeddings_type=_layer(compel, encoder),
        device=str(encoder.device),
    )
    conjunction = _conjunction(script)
    with torch.no_grad(), encoder.lock:
        hidden, ids, _ = reader.build_conditioning_tensor_for_conjunction(
            conjunction, return_tokenization=True
        )
    rows = hidden[0].to(next(encoder.transformer.parameters()).dtype)
    flat = torch.cat([part.flatten() for part in ids]).cpu().to(torch.int64)
    tokens = _tokens(encoder, _fragments(conjunction), flat, len(rows))
    pooled = encoder.encode(encoder.tokenize(tokens.text)).pooled if encoder.pooled else None
    return TextEmbedding(tokens, rows, pooled)


def plain_text(markup: str) -> str:
    """The words of a prompt in compel's syntax; of a blend, those of its first prompt."""
    return " ".join(_fragments(_parsed(markup)))


def _compel() -> Any:
    try:
        import compel
    except ImportError as error:
        raise InvalidRequest(
            "compel reads these weights and is not installed; pip install 't2iedit[compel]'"
        ) from error
    return compel


def _parsed(markup: str) -> Any:
    parser = _compel().prompt_parser.PromptParser()
    try:
        return parser.parse_conjunction(markup)
    except Exception as error:
        raise InvalidRequest(f'compel cannot read the prompt "{markup}" ({said(error)})') from error


def _conjunction(script: Script) -> Any:
    """compel's own parse of its own markup; else the weighted parts of the text."""
    if script.markup is not None:
        return _parsed(script.markup)
    grammar = _compel().prompt_parser
    edges = sorted({0, len(script.text), *(edge for a, b, _ in script.weights for edge in (a, b))})
    weights = {(a, b): weight for a, b, weight in script.weights}
    parts = [
        (script.text[a:b], float(weights.get((a, b), 1.0)))
        for a, b in zip(edges, edges[1:], strict=False)
        if script.text[a:b].strip()
    ]
    return grammar.Conjunction([grammar.FlattenedPrompt(parts or [("", 1.0)])])


def _fragments(conjunction: Any) -> list[str]:
    texts = []
    for prompt in conjunction.prompts:
        first = prompt.prompts[0] if hasattr(prompt, "prompts") else prompt
        for child in first.children:
            if not hasattr(child, "text"):
                raise InvalidRequest("compel's .swap() is not read here; use the edit swap")
            texts.append(child.text.strip())
    return [text for text in texts if text]


def _layer(compel: Any, encoder: TextEncoder) -> Any:
    kinds = compel.ReturnedEmbeddingsType
    known = {
        (None, False): kinds.LAST_HIDDEN_STATES_NORMALIZED,
        (-2, False): kinds.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED,
    }
    if (encoder.layer, encoder.normalise) not in known:
        raise EditNotSupported(
            f'compel cannot read layer {encoder.layer} of the encoder "{encoder.name}"; leave out clip_skip'
        )
    return known[encoder.layer, encoder.normalise]


def _tokens(encoder: TextEncoder, fragments: list[str], ids: torch.Tensor, length: int) -> Tokens:
    """Tokens for compel's ids: each window is BOS where there is one, the next words of the text, EOT and padding."""
    text, words = "", []
    for fragment in fragments:
        text += " " if text else ""
        read = encoder.pieces(fragment)
        words += [(token, (len(text) + a, len(text) + b)) for token, (a, b) in read]
        text += fragment
    window, bos = encoder.length, [Kind.BOS] * encoder.windowed
    room = window - len(bos) - 1
    kinds, offsets = [], []
    for start in range(0, length, window):
        row = ids[start + len(bos) : start + window].tolist()
        pairs = zip(row, (token for token, _ in words[:room]), strict=False)
        taken = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        free = room - taken
        kinds += [*bos, *[Kind.WORD] * taken, Kind.EOT, *[Kind.PAD] * free]
        offsets += [(0, 0)] * len(bos) + [place for _, place in words[:taken]]
        offsets += [(0, 0)] * (free + 1)
        words = words[taken:]
    padded = torch.full((length,), encoder.tokenizer.pad_token_id)
    padded[: min(length, len(ids))] = ids[:length]
    return Tokens(encoder.name, text, padded, tuple(offsets), tuple(kinds))
