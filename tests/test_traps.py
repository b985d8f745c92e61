"""The traps of the papers' methods (shared with their other tests), where an edit or an encoder could fall into them as a whole."""

import pytest
import torch

import t2iedit
from t2iedit.plugins import installed
from t2iedit.text import Kind

PROMPT = "a red cat and a blue dog"
EDITS = sorted(name for name, edit in installed().edits.items() if "edit_embedding" in edit.stages)


@pytest.mark.parametrize("name", EDITS)
def test_bos_is_in_no_subspace_and_sets_no_scale(model, name):
    """BOS is an outlier; whatever it is, no edit's maximum, projection or mean may know of it."""
    edit = installed().edit(name)
    options = edit.example | ({"gamma": 10, "tau": 0.0} if name == "t2i_zero" else {})
    run = t2iedit.start(model, t2iedit.Request(PROMPT, steps=1, edits=[edit(**options)]))
    for encoder in model.encoders:
        embedding = encoder.encode(encoder.tokenize(PROMPT))
        bos, rest = embedding.tokens.of(Kind.BOS), embedding.tokens.of(*set(Kind) - {Kind.BOS})
        louder = embedding.hidden.clone()
        louder[bos] *= 100
        first, second = (
            run.edits[0].edit_embedding(embedding.with_hidden(hidden), run).hidden
            for hidden in (embedding.hidden, louder)
        )
        assert torch.equal(first[rest], second[rest])
        assert "patch_model" in edit.stages or not torch.equal(first[rest], embedding.hidden[rest])


def test_report_of_an_edits_effect_leaves_bos_out(sd1, monkeypatch):
    """A share of the whole matrix would be small beside BOS, whatever an edit did."""
    encoder = sd1.encoders[0]
    original = type(encoder).encode_batch

    def louder(self, batch, embeds=None):
        made = original(self, batch, embeds)
        for embedding in made:
            embedding.hidden[0] *= 1000
        return made

    Decor = installed().edit("decor")

    def change():
        request = t2iedit.Request(PROMPT, steps=1, edits=[Decor(undesired=["red cat"])])
        run = t2iedit.start(sd1, request)
        t2iedit.condition([run])
        return run.report["edits"][0]["change"]["clip"]

    plain = change()
    monkeypatch.setattr(type(encoder), "encode_batch", louder)
    assert plain > 0.01 and change() == pytest.approx(plain, rel=1e-3)
