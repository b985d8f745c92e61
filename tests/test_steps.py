"""Step windows: an edit acts from `start` to `stop` of the denoising, by timestep."""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
)
from PIL import Image

import t2iedit
from t2iedit.plugins import installed
from t2iedit.steps import scheduled

Decor = installed().edit("decor")
PROMPT = "a red cat and a blue dog"
STEPS = 6


def conditioning(model, *edits, **values):
    run = t2iedit.start(model, t2iedit.Request(PROMPT, steps=STEPS, edits=edits, **values))
    return t2iedit.condition([run])[0]


def told(model, request):
    """What the denoiser was told at each call: (timestep, encoder states, pooled or None)."""
    calls = []

    def listen(module, args, kwargs):
        added = kwargs.get("added_cond_kwargs") or {}
        calls.append((float(args[1]), kwargs["encoder_hidden_states"], added.get("text_embeds")))

    # Registered after the window's own hook would be too late, so listen on the module that runs next.
    original = model.denoiser.forward

    def forward(*args, **kwargs):
        listen(model.denoiser, args, kwargs)
        return original(*args, **kwargs)

    model.denoiser.forward = forward
    try:
        t2iedit.generate(model, request)
    finally:
        del model.denoiser.forward
    return calls


def test_conditioning_changes_where_windows_begin_and_end(sd1):
    windowed = conditioning(sd1, Decor(undesired=["fog"], start=0.25, stop=0.75))
    edited = conditioning(sd1, Decor(undesired=["fog"]))
    plain = conditioning(sd1)
    assert [start for start, _ in windowed.changes] == [0.25, 0.75]
    for fraction, expected in ((0.0, plain), (0.3, edited), (0.75, plain), (1.0, plain)):
        assert torch.equal(windowed.at(fraction).prompt[0].hidden, expected.prompt[0].hidden)


def test_whole_window_equals_no_window(model):
    def image(**window):
        edits = [Decor(undesired=["fog"], **window)]
        return np.asarray(
            t2iedit.generate(model, t2iedit.Request(PROMPT, steps=3, edits=edits)).image
        )

    assert np.array_equal(image(), image(start=0, stop=1))
    assert not np.array_equal(image(), image(start=0.5))


@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_denoiser_is_told_the_edit_within_the_window_only(model, guidance):
    edit = Decor(undesired=["fog"], start=0.5)
    request = t2iedit.Request(PROMPT, steps=STEPS, guidance_scale=guidance, edits=[edit])
    calls = told(model, request)
    plain = model.denoiser_inputs(
        conditioning(model, guidance_scale=guidance), batch=2 if guidance > 1 else 1
    )
    whole = model.denoiser_inputs(
        conditioning(model, Decor(undesired=["fog"]), guidance_scale=guidance),
        batch=2 if guidance > 1 else 1,
    )
    assert len(calls) == STEPS
    for number, (_, states, pooled) in enumerate(calls):
        expected = plain if number < STEPS / 2 else whole
        assert torch.equal(states, expected["encoder_hidden_states"])
        if pooled is not None:
            assert torch.equal(pooled, expected["added_cond_kwargs"]["text_embeds"])


@pytest.mark.parametrize(
    "scheduler", [DDIMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler, PNDMScheduler]
)
def test_window_goes_by_timestep_and_not_by_call(sd1, scheduler):
    sd1.pipeline.scheduler = scheduler.from_config(sd1.pipeline.scheduler.config)
    request = t2iedit.Request(PROMPT, steps=STEPS, edits=[Decor(undesired=["fog"], stop=0.5)])
    calls = told(sd1, request)
    plain = conditioning(sd1).prompt[0].hidden
    edited_at = {time for time, states, _ in calls if not torch.equal(states[1], plain)}
    plain_at = {time for time, states, _ in calls if torch.equal(states[1], plain)}
    times = sorted({time for time, _, _ in calls}, reverse=True)
    assert edited_at == set(times[: -(-len(times) // 2)])
    assert plain_at == set(times) - edited_at
    if scheduler in (HeunDiscreteScheduler, PNDMScheduler):
        assert len(calls) > STEPS


def test_image_to_image_counts_its_own_steps(sd1):
    pipe = StableDiffusionImg2ImgPipeline(**sd1.pipeline.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    windowed = conditioning(sd1, Decor(undesired=["fog"], start=0.5))
    seen = []
    original = sd1.denoiser.forward

    def forward(*args, **kwargs):
        seen.append(kwargs["encoder_hidden_states"][1])
        return original(*args, **kwargs)

    sd1.denoiser.forward = forward
    try:
        with scheduled(sd1, windowed):
            pipe(
                image=Image.new("RGB", (64, 64)),
                strength=0.5,
                num_inference_steps=8,
                **sd1.inputs(windowed),
            )
    finally:
        del sd1.denoiser.forward
    edited = windowed.at(1.0).prompt[0].hidden
    assert [torch.equal(states, edited) for states in seen] == [False, False, True, True]


def test_hook_is_gone_after_a_run_that_failed(sd1):
    def fail(progress):
        raise RuntimeError("stop")

    request = t2iedit.Request(PROMPT, steps=2, edits=[Decor(undesired=["fog"], start=0.5)])
    with pytest.raises(RuntimeError, match="stop"):
        t2iedit.generate(sd1, request, on_step=fail)
    assert not sd1.denoiser._forward_pre_hooks


@pytest.mark.parametrize("scheduler", ["heun", "pndm"])
def test_progress_counts_each_step_once_however_often_the_denoiser_is_called(sd1, scheduler):
    heard = []
    request = t2iedit.Request(PROMPT, steps=4, scheduler=scheduler)
    t2iedit.generate(sd1, request, on_step=lambda p: heard.append(p.step))
    assert heard == [1, 2, 3, 4]


def test_progress_counts_steps_of_each_image(sd1):
    heard = []
    request = t2iedit.Request(PROMPT, steps=2, seeds=(4, 9))
    t2iedit.generate(sd1, request, on_step=lambda p: heard.append((p.seed, p.step, p.steps)))
    assert heard == [(4, 1, 2), (4, 2, 2), (9, 1, 2), (9, 2, 2)]
