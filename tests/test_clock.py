"""Fractions of the denoising, told by timesteps."""

from types import SimpleNamespace

import pytest
import torch

from t2iedit.clock import Clock

HEUN = [801.0, 601.0, 601.0, 401.0, 401.0, 201.0, 201.0, 1.0, 1.0]
FRACTIONS = [0, 0.2, 0.2, 0.4, 0.4, 0.6, 0.6, 0.8, 0.8]


def clock(*timesteps):
    return Clock(SimpleNamespace(timesteps=torch.tensor(timesteps)))


def test_fraction_is_the_share_of_distinct_timesteps_before():
    told = clock(*HEUN)
    assert [told.fraction(t) for t in HEUN] == FRACTIONS


def test_first_timestep_seen_is_the_beginning():
    told = clock(*HEUN)
    assert [told.fraction(t) for t in (401.0, 201.0, 1.0)] == pytest.approx([0, 1 / 3, 2 / 3])


def test_timesteps_may_be_rounded_to_half_precision_and_repeated_for_a_batch():
    told = clock(*HEUN)
    rounded = torch.tensor(HEUN).to(torch.bfloat16)
    assert not torch.equal(rounded.float(), torch.tensor(HEUN))
    assert [told.fraction(t.repeat(2)) for t in rounded] == FRACTIONS
