"""Opened cross-attention: right numbers, no trace, whatever the processor."""

from contextlib import suppress

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, SlicedAttnProcessor

import t2iedit
from t2iedit import Request, Site
from t2iedit.attention import map_size, opened
from t2iedit.testing import PROMPT, tiny_model

SIDE = 16


def denoised(model, look=None, *, guided=True, size=(SIDE, SIDE), images=1):
    """One call of a tiny denoiser, opened if there is something to look with."""
    generator = torch.Generator().manual_seed(0)
    unet, batch = model.denoiser, (2 if guided else 1) * images
    inputs = torch.randn(batch, 4, *size, generator=generator)
    states = torch.randn(batch, 77, unet.config.cross_attention_dim, generator=generator)
    model.pipeline.scheduler.set_timesteps(4)
    timestep = model.pipeline.scheduler.timesteps[0]
    with torch.no_grad():
        if look is None:
            return unet(inputs, timestep, states).sample
        with opened(unet, model.pipeline.scheduler, look, guided=guided):
            return unet(inputs, timestep, states).sample


def explicit(model, change):
    """The layers' own processors replaced by one that edits the probabilities of the second half itself."""

    class Explicit(AttnProcessor):
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, **kwargs):
            if encoder_hidden_states is None:
                return super().__call__(attn, hidden_states, **kwargs)
            query = attn.head_to_batch_dim(attn.to_q(hidden_states))
            key = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states))
            value = attn.head_to_batch_dim(attn.to_v(encoder_hidden_states))
            probs = attn.get_attention_scores(query, key).unflatten(0, (-1, attn.heads))
            half = len(probs) // 2
            probs = torch.cat([probs[:half], change(probs[half:])]).flatten(0, 1)
            return attn.to_out[0](attn.batch_to_head_dim(probs @ value))

    model.denoiser.set_attn_processor(Explicit())
    return denoised(model)


def halved_word(probs):
    return torch.cat([probs[..., :3], probs[..., 3:4] / 2, probs[..., 4:]], dim=-1)


def test_an_opened_layer_computes_what_explicit_attention_would(sd1):
    difference = denoised(sd1, lambda site: halved_word) - explicit(tiny_model("sd1"), halved_word)
    assert difference.abs().max() < 1e-5
    assert (denoised(sd1) - explicit(tiny_model("sd1"), halved_word)).abs().max() > 1e-4


def test_editing_both_halves_would_be_wrong(sd1):
    opened_ = denoised(sd1, lambda site: halved_word)
    plain = denoised(sd1)
    assert torch.equal(opened_[0], plain[0])
    assert not torch.equal(opened_[1], plain[1])


def test_without_guidance_the_whole_batch_is_the_prompts(sd1):
    plain = denoised(sd1, guided=False, images=2)
    opened_ = denoised(sd1, lambda site: halved_word, guided=False, images=2)
    assert all(not torch.equal(a, b) for a, b in zip(plain, opened_, strict=True))


def test_an_edit_that_changes_nothing_changes_no_bit(sd1):
    assert torch.equal(denoised(sd1, lambda site: lambda probs: probs), denoised(sd1))


def test_probabilities_are_probabilities_of_the_right_size(model):
    seen = []

    def look(site):
        def keep(probs):
            seen.append((site, probs.shape, probs.sum(-1)))
            return probs

        return keep

    request = Request(PROMPT, steps=1, guidance_scale=3.0, size=(72, 40))
    run = t2iedit.start(model, request)
    (conditioning,) = t2iedit.condition([run])
    with opened(model.denoiser, model.pipeline.scheduler, look, guided=run.guided):
        list(t2iedit.denoise(run, conditioning))
    layers = {name for name, _ in model.denoiser.named_modules() if name.endswith("attn2")}
    assert {site.layer for site, _, _ in seen} == layers and len(seen) == len(layers)
    for site, shape, total in seen:
        assert shape == (1, site.heads, site.height * site.width, 77)
        assert torch.allclose(total, torch.ones_like(total), atol=1e-5)
        assert site.fraction == 0


def test_where_nothing_is_to_be_done_nothing_is_computed(sd1, monkeypatch):
    monkeypatch.setattr(torch, "softmax", lambda *args, **kwargs: pytest.fail("computed"))
    denoised(sd1, lambda site: None)


def test_other_processors_give_the_same(sd1):
    for processor in (AttnProcessor(), SlicedAttnProcessor(2)):
        other = tiny_model("sd1")
        other.denoiser.set_attn_processor(processor)
        difference = denoised(sd1, lambda site: halved_word) - denoised(
            other, lambda site: halved_word
        )
        assert difference.abs().max() < 1e-5


def test_an_ip_adapters_processor_is_opened_too(sd1):
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0

    processors = {}
    for name, module in sd1.denoiser.named_modules():
        if name.endswith("attn2"):
            width = module.to_q.in_features
            processors[f"{name}.processor"] = IPAdapterAttnProcessor2_0(
                width, module.to_k.in_features, num_tokens=(2,), scale=0.5
            )
        elif name.endswith("attn1"):
            processors[f"{name}.processor"] = AttnProcessor()
    sd1.denoiser.set_attn_processor(processors)
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(2, 4, SIDE, SIDE, generator=generator)
    states = torch.randn(2, 77, sd1.denoiser.config.cross_attention_dim, generator=generator)
    image = [torch.randn(2, 1, 2, states.shape[-1], generator=generator)]
    sd1.denoiser.encoder_hid_proj = lambda images: images
    sd1.denoiser.register_to_config(encoder_hid_dim_type="ip_image_proj")
    sd1.pipeline.scheduler.set_timesteps(4)

    def call():
        with torch.no_grad():
            first = sd1.pipeline.scheduler.timesteps[0]
            return sd1.denoiser(
                sample, first, states, added_cond_kwargs={"image_embeds": image}
            ).sample

    plain = call()
    with opened(sd1.denoiser, sd1.pipeline.scheduler, lambda s: halved_word, guided=True):
        edited = call()
    assert torch.equal(edited[0], plain[0]) and not torch.equal(edited[1], plain[1])
    assert torch.equal(call(), plain)


def test_a_processor_that_goes_its_own_way_is_refused_by_name(sd1):
    class Elsewhere(AttnProcessor):
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, **kwargs):
            return attn.to_out[0](hidden_states)

    sd1.denoiser.set_attn_processor(Elsewhere())
    with pytest.raises(t2iedit.EditNotSupported, match="Elsewhere"):
        denoised(sd1, lambda site: halved_word)


def test_fused_projections_are_refused(sd1):
    sd1.denoiser.fuse_qkv_projections()
    with pytest.raises(t2iedit.EditNotSupported, match="unfuse_qkv_projections"):
        denoised(sd1, lambda site: halved_word)


def hooks(model):
    return sum(
        len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.denoiser.modules()
    )


def test_no_hook_stays_behind_even_after_a_failure(sd1):
    def fail(probs):
        raise RuntimeError

    for look in (halved_word, fail):
        with suppress(RuntimeError):
            denoised(sd1, lambda site, look=look: look)
        assert hooks(sd1) == 0


@pytest.mark.parametrize(
    ("latents", "pixels", "expected"),
    [
        ((64, 64), 256, (16, 16)),
        ((45, 80), 23 * 40, (23, 40)),
        ((45, 80), 12 * 20, (12, 20)),
        ((5, 9), 45, (5, 9)),
    ],
)
def test_map_sizes_of_latents_that_do_not_halve_evenly(latents, pixels, expected):
    assert map_size(latents, pixels) == expected


class Probe(t2iedit.Edit):
    name = "probe"

    def opens(self, site, run):
        return site.fraction < 0.5

    def edit_attention(self, probs, site, run):
        probs *= 0.5
        return probs


def test_an_edit_sees_its_window_of_steps_and_reports_what_it_moved(sd1):
    def report(**options):
        edit = Probe(**options)
        return t2iedit.generate(sd1, Request(PROMPT, steps=4, edits=[edit])).report["edits"][0]

    layers = len([n for n, _ in sd1.denoiser.named_modules() if n.endswith("attn2")])
    assert report()["attention"] == {"maps": 2 * layers, "moved": pytest.approx(0.25)}
    assert report(start=0.25)["attention"]["maps"] == layers


def test_an_edit_that_returns_another_shape_is_named(sd1):
    class Cut(Probe):
        name = "cut"

        def edit_attention(self, probs, site, run):
            return probs[..., :3]

    with pytest.raises(t2iedit.T2IEditError, match='"cut"'):
        t2iedit.generate(sd1, Request(PROMPT, steps=1, edits=[Cut()]))


def test_site_is_a_plain_value():
    assert Site("a", 2, 3, 4, 0.0) == Site("a", 2, 3, 4, 0.0)
