"""The signal equations against hand-worked values, and the contrast of each modality."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.data.phantom_fields import Grid
from pipeline.data.phantom_signal import (
    TISSUES,
    Tissue,
    bias_field,
    inversion_recovery,
    nulling_time_ms,
    rician,
    signal,
    spin_echo,
    thick_slices,
    varied,
    with_contrast,
)

LN2 = float(np.log(2))
TISSUE = Tissue(1000, 100, 0.5, 1.0)
MODALITIES = ("flair", "t1", "t1ce", "t2")


def test_spin_echo_by_hand():
    # TR = T1 ln 2 recovers one half; TE = T2 ln 2 leaves one half: 0.5 / 2 / 2
    value = spin_echo(TISSUE, repetition_ms=1000 * LN2, echo_ms=100 * LN2)
    assert value == pytest.approx(0.125, rel=1e-12)


def test_inversion_recovery_by_hand():
    # TI = T1 ln 4: 1 - 2/4; TR = T1 ln 10 adds 1/10; TE = 0: 0.5 * 0.6
    value = inversion_recovery(
        TISSUE, repetition_ms=1000 * np.log(10), echo_ms=0, inversion_ms=1000 * np.log(4)
    )
    assert value == pytest.approx(0.3, rel=1e-12)
    # right after the inversion the magnetisation points down; the magnitude does not
    down = inversion_recovery(TISSUE, repetition_ms=1e9, echo_ms=0, inversion_ms=0)
    assert down == pytest.approx(0.5, rel=1e-12)


def test_nulling_time_by_hand_and_by_its_meaning():
    assert nulling_time_ms(TISSUE, repetition_ms=1e9) == pytest.approx(1000 * LN2, rel=1e-12)
    time_ms = nulling_time_ms(TISSUE, repetition_ms=3000)
    null = inversion_recovery(TISSUE, repetition_ms=3000, echo_ms=10, inversion_ms=time_ms)
    assert null == pytest.approx(0, abs=1e-12)


def test_contrast_agent_adds_its_rate():
    # 1/1000 + 4.97 * 1 / 1000 per ms: T1 falls to 1000 / 5.97 ms
    seen = with_contrast(TISSUE)
    assert seen.t1_ms == pytest.approx(1000 / 5.97, rel=1e-12)
    assert (seen.t2_ms, seen.proton_density) == (100, 0.5)


@pytest.mark.parametrize(
    ("modality", "bright_to_dark"),
    [
        ("t1", ["white", "deep_grey", "grey", "csf"]),
        ("t1", ["white", "grey", "oedema", "necrosis", "csf"]),
        ("t2", ["csf", "necrosis", "oedema", "grey", "white", "pallidum"]),
        ("flair", ["oedema", "grey", "white", "csf"]),
        ("flair", ["gliosis", "white"]),
        ("t1ce", ["enhancing", "white", "grey", "necrosis"]),
        ("t1ce", ["vessel", "csf"]),
    ],
)
def test_order_of_the_tissues(modality: str, bright_to_dark: list[str]):
    values = [signal(modality, TISSUES[name]) for name in bright_to_dark]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == len(values)


def test_flair_nulls_csf_and_only_contrast_tells_t1ce_from_t1():
    assert signal("flair", TISSUES["csf"]) == pytest.approx(0, abs=1e-12)
    assert signal("t1ce", TISSUES["white"]) == pytest.approx(signal("t1", TISSUES["white"]))
    assert signal("t1ce", TISSUES["enhancing"]) > 1.5 * signal("t1", TISSUES["enhancing"])


@pytest.mark.parametrize("seed", range(20))
def test_another_person_keeps_the_contrast_that_matters(seed: int):
    tissues = varied(np.random.default_rng(seed))
    assert set(tissues) == set(TISSUES)
    values = {m: {name: signal(m, t) for name, t in tissues.items()} for m in MODALITIES}
    assert values["t1"]["white"] > values["t1"]["grey"] > values["t1"]["csf"]
    assert values["t2"]["csf"] > values["t2"]["oedema"] > values["t2"]["white"]
    assert values["flair"]["oedema"] > values["flair"]["white"] > 3 * values["flair"]["csf"]
    assert values["t1ce"]["enhancing"] > values["t1"]["enhancing"]


def test_rician_noise_of_no_signal_has_rayleighs_mean_and_is_never_negative():
    noise = rician(np.random.default_rng(0), np.zeros((40, 40, 40), np.float32), sigma=2.0)
    assert noise.min() >= 0
    # the noise is correlated over about two voxels: 1 % is five standard errors
    assert noise.mean() == pytest.approx(2 * np.sqrt(np.pi / 2), rel=0.01)


def test_rician_noise_of_a_strong_signal_is_gaussian():
    image = np.full((40, 40, 40), 100, np.float32)
    noisy = rician(np.random.default_rng(0), image, sigma=2.0)
    assert noisy.mean() == pytest.approx(100 + 2**2 / (2 * 100), abs=0.05)
    assert noisy.std() == pytest.approx(2, rel=0.02)
    assert image.min() == image.max() == 100, "the input must not change"


def test_bias_is_smooth_positive_and_around_one():
    axis = np.linspace(-80, 80, 33, dtype=np.float32)
    fields = [bias_field(np.random.default_rng(s), Grid((axis,) * 3, 5.0)) for s in range(20)]
    values = np.array(fields)
    assert values.min() > 0
    assert np.quantile(values, 0.03) > 0.85
    assert np.quantile(values, 0.97) < 1.18
    assert np.abs(np.diff(values, axis=1)).max() < 0.03


def test_thick_slices_blur_along_z_only():
    image = np.zeros((3, 3, 41), np.float32)
    image[1, 1, 20] = 1
    blurred = thick_slices(image, thickness_mm=5.0, voxel_mm=1.0)
    assert blurred[0].max() == 0
    profile = blurred[1, 1]
    assert profile.sum() == pytest.approx(1, abs=1e-5)
    # full width at half maximum of 5 mm: about half the peak 2.5 voxels away
    assert np.interp(22.5, np.arange(41), profile) == pytest.approx(profile[20] / 2, rel=0.03)
