"""The conformance test catches every way of breaking the contract: an edit for each, written wrong on purpose."""

import random
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import Field, field_serializer
from torch import nn

import t2iedit
from t2iedit.errors import PluginError
from t2iedit.testing import check_edit, tiny_model


def scaled(embedding, factor=1.5):
    """What a well-behaved edit does: the words' rows louder."""
    hidden = embedding.hidden.clone()
    hidden[embedding.tokens.words] *= factor
    return embedding.with_hidden(hidden)


class Good(t2iedit.Edit):
    name = "good"
    neutral = {"factor": 1.0}

    class Options(t2iedit.Options):
        factor: float = 1.5

    def edit_embedding(self, embedding, run):
        return scaled(embedding, self.options.factor)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_good_edit_passes(family):
    check_edit(Good, [tiny_model(family)])


# What an edit returns.


class Shorter(Good):
    def edit_embedding(self, embedding, run):
        return embedding.with_hidden(embedding.hidden[:-1])


class Double(Good):
    def edit_embedding(self, embedding, run):
        return embedding.with_hidden(scaled(embedding).hidden.double())


class Elsewhere(Good):
    def edit_embedding(self, embedding, run):
        return embedding.with_hidden(embedding.hidden.to("meta"))


class LouderBos(Good):
    def edit_embedding(self, embedding, run):
        return embedding.with_hidden(embedding.hidden * 1.5)


class LouderBosOfTheSecond(Good):
    def edit_embedding(self, embedding, run):
        second = embedding.tokens.encoder == "clip_g"
        return LouderBos.edit_embedding(self, embedding, run) if second else scaled(embedding)


class WithoutPooled(Good):
    def edit_embedding(self, embedding, run):
        return replace(scaled(embedding), pooled=None)


class LongerPooled(Good):
    def edit_embedding(self, embedding, run):
        pooled = None if embedding.pooled is None else embedding.pooled.repeat(2)
        return replace(scaled(embedding), pooled=pooled)


class Mutating(Good):
    def edit_embedding(self, embedding, run):
        embedding.hidden[embedding.tokens.words] *= 1.5
        return embedding


class MutatingPooled(Good):
    def edit_embedding(self, embedding, run):
        if embedding.pooled is not None:
            embedding.pooled.mul_(1.5)
        return scaled(embedding)


class ShorterInput(t2iedit.Edit):
    name = "shorter_input"

    def edit_token_embeds(self, embeds, tokens, run):
        return embeds[:-1]


class ShorterAttention(t2iedit.Edit):
    name = "shorter_attention"

    def edit_attention(self, probs, site, run):
        return probs[..., :-1]


# What its options do.


class NeutralActs(Good):
    neutral = {"factor": 1.000001}


class Idle(Good):
    example = {"factor": 1.0}


class Lossy(Good):
    example = {"factor": 1.25}

    class Options(Good.Options):
        @field_serializer("factor")
        def _rounded(self, factor: float) -> float:
            return round(factor, 1)


class Hidden(Good):
    example = {"factor": 1.25}

    class Options(Good.Options):
        factor: float = Field(1.5, exclude=True)


# What it remembers.


class Counting(Good):
    neutral = None
    calls = 0

    def edit_embedding(self, embedding, run):
        Counting.calls += 1
        return scaled(embedding, 1 + Counting.calls / 10)


class Random(Good):
    neutral = None

    def edit_embedding(self, embedding, run):
        return scaled(embedding, random.uniform(1.1, 2))


# What it leaves behind. All but the last two do so at once, before any run has failed.


def leaving(leave: Any) -> type[t2iedit.Edit]:
    class Leaving(Good):
        neutral = None

        def edit_embedding(self, embedding, run):
            leave(run.model)
            return scaled(embedding)

    return Leaving


def a_weight(model):
    model.denoiser.conv_out.bias.fill_(0.5)


def a_weight_of_the_encoder(model):
    next(model.pipeline.text_encoder.parameters()).zero_()


def a_weight_of_the_decoder(model):
    model.pipeline.vae.decoder.conv_out.bias.fill_(0.5)


def a_buffer(model):
    model.denoiser.register_buffer("mark", torch.zeros(1), persistent=False)


def a_parameter(model):
    model.pipeline.vae.register_parameter("mark", nn.Parameter(torch.zeros(1)))


def a_module(model):
    model.denoiser.conv_out = nn.Sequential(model.denoiser.conv_out)


def a_hook(model):
    model.denoiser.register_forward_hook(lambda *args: None)


def training_mode(model):
    model.pipeline.text_encoder.train()


def gradients(model):
    model.denoiser.requires_grad_(True)


def an_attention_processor(model):
    class Mine(type(next(iter(model.denoiser.attn_processors.values())))):
        pass

    model.denoiser.set_attn_processor(Mine())


def another_scheduler(model):
    from diffusers import EulerAncestralDiscreteScheduler as Other

    model.pipeline.scheduler = Other.from_config(model.pipeline.scheduler.config)


class WithoutUndo(t2iedit.Edit):
    name = "without_undo"

    def patch_model(self, model):
        model.denoiser.conv_out.bias.add_(1.0)


class HalfUndone(t2iedit.Edit):
    name = "half_undone"

    def patch_model(self, model):
        bias = model.denoiser.conv_out.bias
        bias.add_(1.0)
        return lambda: bias.sub_(0.999)


class AfterFailure(Good):
    """Takes its hook off in the last step, so one stays behind where a run stops before."""

    neutral = None

    def edit_embedding(self, embedding, run):
        calls = [0]

        def hook(*args):
            calls[0] += 1
            if calls[0] == run.steps:
                handle.remove()

        handle = run.model.denoiser.register_forward_hook(hook)
        return scaled(embedding)


WRONG = {
    "sd1": [
        (Shorter, "returned|the shape changed"),
        (Double, "the dtype changed"),
        (Elsewhere, "the device changed"),
        (LouderBos, "the BOS row changed"),
        (Mutating, "its input was mutated"),
        (ShorterInput, "returned"),
        (ShorterAttention, "returned"),
        (NeutralActs, "neutral options have an effect"),
        (Idle, "its example changes nothing"),
        (Lossy, "options change on their way through JSON"),
        (Hidden, "options change on their way through JSON"),
        (Counting, "a batch of two differs from singles"),
        (Random, "a batch of two differs from singles"),
        (WithoutUndo, "unet.conv_out.bias is not as before"),
        (HalfUndone, "unet.conv_out.bias is not as before"),
        (AfterFailure, "unet. is not as before"),
        *(
            (leaving(leave), f"{part} is not as before")
            for leave, part in (
                (a_weight, "unet.conv_out.bias"),
                (a_weight_of_the_encoder, "text_encoder.[a-z_.]*"),
                (a_weight_of_the_decoder, "vae.decoder.conv_out.bias"),
                (a_buffer, "unet.mark"),
                (a_parameter, "vae.mark"),
                (a_module, "unet.conv_out.0"),
                (a_hook, "unet."),
                (training_mode, "text_encoder.[a-z_.]*"),
                (gradients, "unet.[a-z_.]*"),
                (an_attention_processor, "unet.[a-z_.0-9]*"),
                (another_scheduler, "the picture without edits"),
            )
        ),
    ],
    "sdxl": [
        (LouderBosOfTheSecond, "the BOS row changed"),
        (WithoutPooled, "the shape changed"),
        (LongerPooled, "the shape changed"),
        (MutatingPooled, "its input was mutated"),
    ],
}


@pytest.mark.parametrize(
    ("family", "edit", "sentence"),
    [(family, *case) for family, cases in WRONG.items() for case in cases],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_wrong_edit_is_caught_and_named(family, edit, sentence):
    with pytest.raises((AssertionError, PluginError)) as caught:
        check_edit(edit, [tiny_model(family)])
    assert edit.name in str(caught.value) and re.search(sentence, str(caught.value))
