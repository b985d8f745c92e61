"""Tokens and embeddings: everything is told by position, nothing by id."""

import threading

import pytest
import torch

from t2iedit.errors import ModelNotUsable, SpanTruncated
from t2iedit.spans import locate
from t2iedit.text import Kind, TextEncoder

PROMPT = "a red cat and a blue dog"


def kinds(tokens):
    return [kind.value for kind in tokens.kinds]


def test_kinds_follow_positions(model):
    for encoder in model.encoders:
        tokens = encoder.tokenize("a cat")
        assert kinds(tokens) == ["bos", "word", "word", "eot"] + ["pad"] * 73


def test_eot_is_the_first_of_many_equal_ids(sd1):
    tokens = sd1.encoders[0].tokenize("a cat")
    eot = tokens.ids[tokens.of(Kind.EOT)[0]]
    assert (tokens.ids == eot).sum() == 74
    assert tokens.of(Kind.EOT) == [3]


def test_typed_exclamation_mark_is_a_word_although_it_also_pads(sd2):
    tokens = sd2.encoders[0].tokenize("a cat ! dog")
    padding = sd2.encoders[0].tokenizer.pad_token_id
    assert tokens.ids[3] == padding == tokens.ids[-1]
    assert tokens.words == [1, 2, 3, 4]
    assert tokens.of(Kind.PAD) == list(range(6, 77))


def test_padding_mask_by_id_would_swallow_a_typed_word(sd2):
    tokens = sd2.encoders[0].tokenize("a cat ! dog")
    by_id = (tokens.ids == sd2.encoders[0].tokenizer.pad_token_id).nonzero().flatten().tolist()
    assert by_id != tokens.of(Kind.PAD)


def test_typed_end_of_text_is_a_word(model):
    for encoder in model.encoders:
        tokens = encoder.tokenize("a <|endoftext|> cat")
        assert tokens.words == [1, 2, 3]
        assert tokens.of(Kind.EOT) == [4]


def test_indices_cover_all_pieces_of_a_phrase(sd1):
    tokens = sd1.encoders[0].tokenize("A  redwood and a RED  cat")
    indices = tokens.indices(locate(tokens.text, "red cat"))
    pieces = sd1.encoders[0].tokenizer.convert_ids_to_tokens(tokens.ids[indices].tolist())
    assert pieces == ["red</w>", "cat</w>"]
    wood = tokens.indices(locate(tokens.text, "redwood"))
    assert wood == list(range(2, 2 + len(wood))) and len(wood) > 1


def test_phrase_past_the_window_is_refused(sd1):
    text = "a " * 80 + "cat"
    tokens = sd1.encoders[0].tokenize(text)
    assert tokens.lost.endswith("cat")
    with pytest.raises(SpanTruncated, match='"cat" lies beyond the 77 tokens'):
        tokens.indices(locate(text, "cat"))


def test_phrase_cut_in_two_by_the_windows_end_is_refused(sd1):
    text = "a " * 74 + "red cat"
    tokens = sd1.encoders[0].tokenize(text)
    assert tokens.lost == "cat" and tokens.indices(locate(text, "red")) == [75]
    with pytest.raises(SpanTruncated, match='"red cat" lies beyond the 77 tokens'):
        tokens.indices(locate(text, "red cat"))


def test_prompt_that_fits_loses_nothing(sd1):
    assert sd1.encoders[0].tokenize("a cat").lost == ""


def test_encode_with_own_input_embeddings_changes_nothing(model):
    for encoder in model.encoders:
        tokens = encoder.tokenize(PROMPT)
        plain, given = encoder.encode(tokens), encoder.encode(tokens, encoder.embed(tokens))
        assert torch.equal(plain.hidden, given.hidden)


def test_hook_for_own_embeddings_is_gone_after_a_failure(model):
    for encoder in model.encoders:
        tokens = encoder.tokenize(PROMPT)
        plain, embeds = encoder.encode(tokens).hidden, encoder.embed(tokens)
        with pytest.raises(RuntimeError):
            encoder.encode(tokens, embeds[:, :-1])
        assert torch.equal(encoder.encode(tokens).hidden, plain)
        assert not encoder.transformer.get_input_embeddings()._forward_hooks


def test_encode_is_differentiable_in_the_embeddings_of_later_rows_only(sd1):
    encoder = sd1.encoders[0]
    tokens = encoder.tokenize(PROMPT)
    embeds = encoder.embed(tokens).clone().requires_grad_()
    encoder.encode(tokens, embeds).hidden[4, :3].sum().backward()
    assert embeds.grad is not None
    moved = embeds.grad.abs().sum(dim=1) > 0
    assert moved[:5].all() and not moved[5:].any()
    assert all(p.grad is None for p in encoder.transformer.parameters())


def test_batch_equals_singles(model):
    for encoder in model.encoders:
        batch = [encoder.tokenize(text) for text in (PROMPT, "a dog", "")]
        together = encoder.encode_batch(batch)
        for tokens, both in zip(batch, together, strict=True):
            alone = encoder.encode(tokens)
            assert torch.allclose(alone.hidden, both.hidden, atol=1e-5)
            assert (alone.pooled is None) == (both.pooled is None) == (encoder.pooled is None)


def test_threads_with_and_without_own_embeddings_do_not_mix(sd1):
    encoder = sd1.encoders[0]
    tokens = encoder.tokenize(PROMPT)
    plain, zeros = encoder.encode(tokens).hidden, torch.zeros_like(encoder.embed(tokens))
    blank = encoder.encode(tokens, zeros).hidden
    wrong = []

    def work(embeds, expected):
        for _ in range(30):
            if not torch.allclose(encoder.encode(tokens, embeds).hidden, expected, atol=1e-5):
                wrong.append(embeds)

    threads = [threading.Thread(target=work, args=pair) for pair in ((None, plain), (zeros, blank))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_tokenizer_without_offsets_is_refused(sd1):
    class Slow:
        is_fast = False

    with pytest.raises(
        ModelNotUsable, match="Slow of the encoder 'clip' gives no character offsets"
    ):
        TextEncoder("clip", Slow(), sd1.encoders[0].transformer)
