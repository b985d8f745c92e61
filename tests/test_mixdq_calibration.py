"""Ranges learned through the real pipeline."""

import pytest
import torch
from t2iedit_mixdq.calibration import (
    Observer,
    Settings,
    calibrate,
    make_scheme,
    text_rows,
)
from t2iedit_mixdq.quantizers import BITS
from t2iedit_mixdq.wiring import Layer, survey

import t2iedit

LAYER = Layer("layer", "linear", 4, 4)
PROMPTS = ("a red cat", "a blue dog", "a photo of a car")


def settings(**changes):
    return Settings(**({"prompts": PROMPTS, "batch": 1, "steps": 1} | changes))


def see(observer, *values):
    observer(LAYER, [torch.tensor(values)])


def test_running_average_by_hand():
    observer = Observer()
    see(observer, -1.0, 1.0)
    see(observer, -3.0, 0.5)
    observer.end_batch()
    assert observer.ranges["layer"][0, 2].tolist() == [-3.0, 1.0]
    see(observer, -1.0, 5.0)
    observer.end_batch()
    # 0.95 * -3 + 0.05 * -1 and 0.95 * 1 + 0.05 * 5
    assert observer.ranges["layer"][0, 2].tolist() == pytest.approx([-2.9, 1.2])


def test_all_widths_are_updated_once_a_batch():
    """The released code updates three times a batch, so its widths lag behind each other."""
    observer = Observer()
    for high in (1.0, 2.0, 3.0):
        see(observer, 0.0, high)
        observer.end_batch()
    ranges = observer.ranges["layer"][0]
    assert ranges.shape == (len(BITS), 2) and (ranges == ranges[0]).all()
    thrice = 0.95**3
    released = thrice * (thrice * 1 + (1 - thrice) * 2) + (1 - thrice) * 3
    assert ranges[0, 1] == pytest.approx(0.95 * (0.95 + 0.1) + 0.15)
    assert abs(float(ranges[0, 1]) - released) > 0.1


def test_calibration_leaves_the_model_as_it_was(model):
    request = t2iedit.Request("a red cat", steps=1)
    before = t2iedit.generate(model, request).image.tobytes()
    modules = list(model.denoiser.modules())
    ranges = calibrate(model, settings(prompts=PROMPTS[:1]))
    assert t2iedit.generate(model, request).image.tobytes() == before
    assert all(a is b for a, b in zip(modules, model.denoiser.modules(), strict=True))
    layers = survey(model.denoiser)
    assert set(ranges) == set(layers)
    assert all(ranges[name].shape == (layer.parts, 3, 2) for name, layer in layers.items())


def test_bos_row_is_not_in_the_text_layers_range(sd1):
    """Row 0 is made an outlier by its position embedding; everybody else sees it, the text layers do not."""
    encoder = sd1.pipeline.text_encoder
    handle = encoder.register_forward_hook(_loud_first_row)
    try:
        aware = calibrate(sd1, settings(prompts=PROMPTS[:1]))
        naive = calibrate(sd1, settings(prompts=PROMPTS[:1], bos_aware=False))
        assert text_rows(sd1).abs().max() == 800
    finally:
        handle.remove()
    name = next(name for name in aware if name.endswith("attn2.to_k"))
    assert aware[name].abs().max() < 50
    assert naive[name].max() == 800


def _loud_first_row(module, args, output):
    output[0][:, 0, 0] = 800.0
    return output


def test_split_shortcuts_get_a_range_for_each_half(sd1):
    layers = survey(sd1.denoiser)
    ranges = calibrate(sd1, settings(prompts=PROMPTS[:1]))
    name = next(name for name, layer in layers.items() if layer.split)
    hidden, skip = ranges[name][:, 2]
    assert hidden.tolist() != skip.tolist()
    scheme = make_scheme(
        sd1.denoiser.get_submodule(name).weight, layers[name], 8, 8, ranges=ranges[name]
    )
    assert len(scheme.grids) == 2 and scheme.delta.shape[0] == 2


def test_killed_calibration_goes_on_where_it_was(sd1, tmp_path):
    state = tmp_path / "work" / "calibration.safetensors"
    whole = calibrate(sd1, settings())
    counted = []

    def kill_in_the_second_batch(count):
        counted.append(count)
        if sum(counted) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(sd1, settings(), state=state, on_prompt=kill_in_the_second_batch)
    resumed = []
    ranges = calibrate(sd1, settings(), state=state, on_prompt=resumed.append)
    assert resumed == [1, 1, 1]  # one taken over, two made
    assert all(torch.equal(ranges[name], whole[name]) for name in whole)
    finished = []
    calibrate(sd1, settings(), state=state, on_prompt=finished.append)
    assert finished == [3]


def test_other_settings_or_a_damaged_state_start_anew(sd1, tmp_path):
    state = tmp_path / "calibration.safetensors"
    calibrate(sd1, settings(prompts=PROMPTS[:2]), state=state)
    counted = []
    calibrate(sd1, settings(prompts=PROMPTS[:2], batch=2), state=state, on_prompt=counted.append)
    assert counted[0] == 0
    state.write_bytes(b"nonsense")
    counted.clear()
    calibrate(sd1, settings(prompts=PROMPTS[:2], batch=2), state=state, on_prompt=counted.append)
    assert counted[0] == 0
