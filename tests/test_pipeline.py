"""The straight line with edits: threads, token embeddings, and what reaches the encoder."""

import threading

import numpy as np
import pytest
import torch

import t2iedit
from t2iedit.errors import InvalidRequest
from t2iedit.plugins import installed

Decor = installed().edit("decor")
PROMPT = "a red cat and a blue dog"


class Dim(t2iedit.Edit):
    """Scales the input embedding of the second word."""

    name = "dim"

    class Options(t2iedit.Options):
        by: float = 0.5

    def edit_token_embeds(self, embeds, tokens, run):
        assert torch.is_grad_enabled()
        edited = embeds.clone()
        edited[tokens.words[1]] *= self.options.by
        return edited


def hidden(model, *edits, **values):
    run = t2iedit.start(model, t2iedit.Request(PROMPT, steps=2, edits=edits, **values))
    return t2iedit.condition([run])[0]


def test_token_embeds_stage_changes_later_rows_only(model):
    pairs = zip(hidden(model).prompt, hidden(model, Dim()).prompt, strict=True)
    for plain, edited in pairs:
        assert torch.allclose(plain.hidden[:2], edited.hidden[:2], atol=1e-5)
        assert not torch.allclose(plain.hidden[2:], edited.hidden[2:], atol=1e-3)


def test_token_embeds_edit_can_be_windowed(sd1):
    conditioning = hidden(sd1, Dim(start=0.5))
    assert torch.equal(conditioning.at(0.4).prompt[0].hidden, hidden(sd1).prompt[0].hidden)
    edited = hidden(sd1, Dim()).prompt[0].hidden
    assert torch.allclose(conditioning.at(0.5).prompt[0].hidden, edited, atol=1e-5)


def test_windows_of_later_edits_share_the_encoding(sd1, monkeypatch):
    batches = []
    encoder = type(sd1.encoders[0])
    original = encoder.encode_batch

    def counting(self, batch, embeds=None):
        batches.append(len(batch))
        return original(self, batch, embeds)

    monkeypatch.setattr(encoder, "encode_batch", counting)
    hidden(sd1, t2iedit_marker(start=0.25, stop=0.5), t2iedit_marker(start=0.75))
    assert batches == [1, 1]


def t2iedit_marker(**window):
    class Marker(t2iedit.Edit):
        name = "marker"

        def edit_embedding(self, embedding, run):
            rows = embedding.hidden.clone()
            rows[1] += 1
            return embedding.with_hidden(rows)

    return Marker(**window)


def test_threads_get_each_their_own_picture(sd1):
    requests = [
        t2iedit.Request(PROMPT, steps=3, seed=seed, edits=[Decor(undesired=[text], start=start)])
        for seed, (text, start) in enumerate((("fog", 0.0), ("cat", 0.5), ("dog", 0.25)))
    ]
    expected = [np.asarray(t2iedit.generate(sd1, request).image) for request in requests]
    got = {}

    def work(index):
        for _ in range(3):
            got[index] = np.asarray(t2iedit.generate(sd1, requests[index]).image)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(got[index], image) for index, image in enumerate(expected))


def test_model_is_held_between_the_images_of_a_request(sd1):
    """Another thread must not patch the model there: the next image wants it as it is."""
    free = []

    def ask(image, request):
        def take():
            free.append(sd1.lock.acquire(blocking=False))
            if free[-1]:
                sd1.lock.release()

        thread = threading.Thread(target=take)
        thread.start()
        thread.join()

    t2iedit.generate(sd1, t2iedit.Request(PROMPT, steps=1, seeds=(1, 2)), on_image=ask)
    assert free == [False, False]


def test_images_made_before_an_interrupt_were_handed_out(sd1):
    seen = []

    def stop_at_the_second(image, request):
        seen.append(request.seeds)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        t2iedit.generate(
            sd1, t2iedit.Request(PROMPT, steps=1, seeds=range(5)), on_image=stop_at_the_second
        )
    assert seen == [(0,), (1,)]


def test_conditioning_many_runs_equals_each_alone(model):
    requests = [
        t2iedit.Request("a cat", steps=1),
        t2iedit.Request("a dog", negative="fog", steps=1),
        t2iedit.Request("a car", guidance_scale=0, steps=1),
    ]
    together = t2iedit.condition([t2iedit.start(model, request) for request in requests])
    for request, both in zip(requests, together, strict=True):
        (alone,) = t2iedit.condition([t2iedit.start(model, request)])
        assert (both.negative is None) == (alone.negative is None)
        for a, b in zip(both.prompt, alone.prompt, strict=True):
            assert torch.allclose(a.hidden, b.hidden, atol=1e-5)
    assert t2iedit.condition([]) == []


def test_text_that_many_edits_look_at_is_encoded_once(model, monkeypatch):
    encoded = []
    original = t2iedit.TextEncoder.encode_batch

    def counting(self, tokens, embeds=None):
        encoded.append([token.text for token in tokens])
        return original(self, tokens, embeds)

    monkeypatch.setattr(t2iedit.TextEncoder, "encode_batch", counting)
    texts = [f"a red cat and a {word}" for word in ("dog", "car", "photo")]
    edits = [Decor(undesired=["fog"])]
    requests = [t2iedit.Request(text, guidance_scale=1, edits=edits) for text in texts]
    together = t2iedit.condition([t2iedit.start(model, request) for request in requests])
    assert encoded == [texts, ["fog"]] * len(model.encoders)
    for request, mine in zip(requests, together, strict=True):
        alone = t2iedit.encode(model, request)
        for a, b in zip(mine.prompt, alone.prompt, strict=True):
            assert torch.allclose(a.hidden, b.hidden, atol=1e-5)
    # Afterwards nothing is remembered, so that other weights are noticed.
    encoder = model.encoders[0]
    before = encoder.encode(encoder.tokenize("fog")).hidden
    next(encoder.transformer.parameters()).data.mul_(1.5)
    assert not torch.equal(encoder.encode(encoder.tokenize("fog")).hidden, before)


def test_batch_of_no_images_is_refused(sd1):
    with pytest.raises(InvalidRequest, match="batch_size"):
        t2iedit.generate(sd1, t2iedit.Request("a cat", steps=1), batch_size=0)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_pndm_takes_as_few_steps_as_are_asked_for(sd1, steps):
    request = t2iedit.Request("a cat", steps=steps, scheduler="pndm")
    assert t2iedit.generate(sd1, request).image.size == sd1.defaults.size
