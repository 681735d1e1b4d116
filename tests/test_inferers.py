"""Whole volumes, windows and mirrorings, against what each must be by hand."""

from __future__ import annotations

import copy
import math
from itertools import product

import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor, nn

from networks import UNet3D, VolumeInferer, build_network

SMALL: dict[str, dict[str, object]] = {
    "UNet3D": {"num_filters": 4, "norm": "instance"},
    "SegResNet": {"init_filters": 8},
    "DynUNet": {"filters": (4, 8, 16)},
}


class Channels(nn.Module):
    """Returns x, 2x and -x: a network whose result one knows, whatever it is shown."""

    def forward(self, image: Tensor) -> Tensor:
        return torch.cat([image, 2 * image, -image], dim=1)


class Recorder(Channels):
    """`Channels` that notes which windows it was shown of a volume of `ramps`."""

    def __init__(self) -> None:
        super().__init__()
        self.starts: set[tuple[int, ...]] = set()
        self.sizes: set[tuple[int, ...]] = set()

    def forward(self, image: Tensor) -> Tensor:
        self.starts.add(tuple(int(image[0, axis, 0, 0, 0]) for axis in range(3)))
        self.sizes.add(tuple(image.shape[2:]))
        return super().forward(image)


class Ramp(nn.Module):
    """Adds what no mirroring leaves alone: a ramp along each axis, one for each of two classes."""

    def forward(self, image: Tensor) -> Tensor:
        x, y, z = (torch.arange(size, dtype=torch.float32) for size in image.shape[2:])
        ramp = x[:, None, None] + 0.3 * y[None, :, None] ** 2 - 0.7 * z[None, None, :]
        return torch.cat([image + ramp / 2, 1 - 2 * image], dim=1)


def ramps(*size: int) -> Tensor:
    """Return a volume (1, 3, X, Y, Z) whose channels are the voxels' indices."""
    return torch.stack(torch.meshgrid(*(torch.arange(n) for n in size), indexing="ij"))[
        None
    ].float()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_unet(**settings: int) -> UNet3D:
    torch.manual_seed(0)
    network = UNet3D(**{"dropout": 0.0, "num_filters": 4} | settings).eval()
    for parameter in network.parameters():
        if parameter.dim() == 1:  # biases, which start at 0
            nn.init.normal_(parameter, std=0.1)
        else:  # so that the deepest level is still heard at the top
            nn.init.kaiming_normal_(parameter, nonlinearity="relu")
    return network.requires_grad_(False)


@pytest.mark.parametrize(
    "window",
    [None, 4, 5, 64, (4, 64, 3), (8, 8, 8), (12, 4, 20), 2],
    ids=str,
)
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("size", [(12, 8, 20), (9, 7, 11), (3, 2, 2)], ids=str)
def test_a_known_function_comes_back(
    window: int | None, overlap: float, size: tuple[int, int, int]
) -> None:
    image = noise(2, 2, *size)
    logits = VolumeInferer(window=window, overlap=overlap)(image, Channels())
    # A blend multiplies and divides by its weights: a rounding for each of them.
    torch.testing.assert_close(logits, Channels()(image), rtol=1e-5, atol=1e-6)


def test_each_voxel_keeps_its_place_exactly() -> None:
    image = ramps(10, 13, 7)
    logits = VolumeInferer(window=(4, 5, 3), overlap=0.5)(image, Channels())
    torch.testing.assert_close(logits[:, :3].round(), image, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("size", "window", "divisor", "overlap", "starts"),
    [
        (24, 8, 1, 0.5, [0, 4, 8, 12, 16]),
        (25, 8, 1, 0.5, [0, 4, 8, 12, 16, 17]),
        (64, 24, 8, 0.5, [0, 16, 32, 40]),  # 12 would be no multiple of 8; 48 has no room
        (64, 24, 8, 0.25, [0, 16, 32, 40]),  # from 18
        (64, 24, 8, 0.9, [0, 8, 16, 24, 32, 40]),  # from 2.4: at least one divisor
        (64, 24, 8, 0.0, [0, 24, 40]),
        (64, 20, 8, 0.0, [0, 24, 40]),  # 20 is rounded up to 24
        (32, 40, 8, 0.5, [0]),
        (200, 40, 8, 0.4, [0, 24, 48, 72, 96, 120, 144, 160]),
        # 1 - 7 / 10 comes out a hair too small for a step of 7, were it not for the half voxel.
        (24, 10, 1, 0.3, [0, 7, 14]),
    ],
)
def test_windows_start_at_multiples_of_the_divisor(
    size: int, window: int, divisor: int, overlap: float, starts: list[int]
) -> None:
    network = Recorder()
    inferer = VolumeInferer(window=window, overlap=overlap, divisor=divisor)
    inferer(ramps(size, 8, 8), network)
    assert sorted(network.starts) == [(start, 0, 0) for start in starts]
    edge = min(-(-window // divisor) * divisor, size)
    assert network.sizes == {(edge, 8, 8)}


def test_windows_are_blended_by_gaussian_weights() -> None:
    calls = iter([0.0, 1.0])

    def first_no_then_yes(image: Tensor) -> Tensor:
        return torch.full_like(image, next(calls))

    inferer = VolumeInferer(window=(4, 1, 1), overlap=0.5)
    blend = inferer(torch.zeros(1, 1, 6, 1, 1), first_no_then_yes).ravel()
    # The standard deviation is an eighth of the window: half a voxel. The two voxels that both
    # windows see lie 0.5 voxels from the centre of one and 1.5 from that of the other.
    near, far = math.exp(-0.5), math.exp(-4.5)
    expected = [0, 0, far / (near + far), near / (near + far), 1, 1]
    assert blend.tolist() == pytest.approx(expected, abs=1e-6)  # float32


def test_every_overlap_gives_the_intended_step() -> None:
    # MONAI truncates edge * (1 - overlap); no rounding of ours may fall below the step.
    for divisor, multiple, percent in product((1, 2, 8, 32), range(1, 20), range(0, 100, 3)):
        edge = divisor * multiple
        inferer = VolumeInferer(window=edge, overlap=percent / 100, divisor=divisor)
        step = int(edge * (1 - inferer._monai_overlap(edge)))
        assert step % divisor == 0
        assert 0 < step <= edge
        assert abs(step - edge * (1 - percent / 100)) <= max(divisor / 2, step * (step == divisor))


def sees_beyond(size: int, *, starts: tuple[int, ...], edge: int, radius: int) -> Tensor:
    """Return which voxels of an axis see beyond a window's face within the volume, bool (size,)."""
    found = torch.zeros(size, dtype=torch.bool)
    for start in starts:
        if start > 0:
            found[start : start + radius] = True
        if start + edge < size:
            found[start + edge - radius : start + edge] = True
    return found


def test_windows_agree_with_the_whole_volume_on_the_interior() -> None:
    network = random_unet(num_levels=2)
    # How far a voxel sees: two convolutions, four at half the resolution, two; and one voxel for
    # its neighbour within the pooled pair.
    radius = 2 + 4 * 2 + 2 + 1
    image = noise(1, 4, 96, 64, 16)
    whole = VolumeInferer(divisor=2)(image, network)
    windows = VolumeInferer(window=(64, 48, 16), divisor=2)(image, network)
    difference = (whole - windows).abs().amax(dim=(0, 1, 4))

    x = sees_beyond(96, starts=(0, 32), edge=64, radius=radius)
    y = sees_beyond(64, starts=(0, 16), edge=48, radius=radius)
    near = x[:, None] | y[None, :]
    assert not near[32:64, 16:48].all()  # some of the interior is blended of four windows
    assert difference[~near].max() < 1e-4  # kernels round differently for other sizes
    assert difference[near].max() > 1e-2


@pytest.mark.parametrize(
    ("divisor", "starts", "agree"), [(8, (0, 104, 120), True), (1, (0, 100, 120), False)]
)
def test_four_levels_need_windows_at_multiples_of_8(
    divisor: int, starts: tuple[int, ...], agree: bool
) -> None:
    network = random_unet(num_levels=4, num_filters=2)
    radius = 2 * (1 + 2 + 4 + 8) + 2 * 8 + 2 * (4 + 2 + 1) + 7
    image = noise(1, 4, 400, 8, 8)
    whole = VolumeInferer()(image, network)
    inferer = VolumeInferer(window=280, overlap=1 - 100.3 / 280, divisor=divisor)
    windows = inferer(image, network)
    difference = (whole - windows).abs().amax(dim=(0, 1, 3, 4))
    near = sees_beyond(400, starts=starts, edge=280, radius=radius)
    assert not near[120:280].all()
    assert (difference[~near].max() < 1e-4) == agree
    assert difference[near].max() > 1e-3


@pytest.mark.parametrize("axes", [(), (2,), (3,), (4,), (2, 3), (2, 4), (3, 4), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("window", [None, 4])
def test_each_mirroring_is_undone(
    axes: tuple[int, ...], window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("networks.inferers.MIRRORINGS", [axes])
    image = ramps(6, 5, 7)
    result = VolumeInferer(window=window, flips=True)(image, Channels())
    expected = torch.log_softmax(Channels()(image), dim=1).clamp(min=-87.4)
    # Neighbours differ by 1 at least; the blend of values up to 14 rounds in the sixth digit.
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-4)


def test_flips_average_the_probabilities_of_all_eight() -> None:
    image = noise(1, 1, 4, 3, 5)
    result = VolumeInferer(flips=True)(image, Ramp())

    mean = torch.zeros(1, 2, 4, 3, 5, dtype=torch.float64)
    for x_step, y_step, z_step in product((1, -1), repeat=3):
        mirrored = image.numpy()[:, :, ::x_step, ::y_step, ::z_step].copy()
        odds = Ramp()(torch.from_numpy(mirrored)).double().exp()
        probabilities = (odds / odds.sum(dim=1, keepdim=True)).numpy()
        mean += torch.from_numpy(probabilities[:, :, ::x_step, ::y_step, ::z_step].copy()) / 8
    assert result.dtype == torch.float32
    # A few roundings in float32.
    torch.testing.assert_close(result.softmax(dim=1).double(), mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(result.double(), mean.log(), rtol=0, atol=1e-5)
    once = VolumeInferer()(image, Ramp()).softmax(dim=1).double()
    assert (once - mean).abs().max() > 0.1


def test_a_probability_of_zero_keeps_a_finite_logarithm() -> None:
    def certain(image: Tensor) -> Tensor:
        return torch.cat([image, image - 1000], dim=1).half()

    result = VolumeInferer(flips=True)(torch.zeros(1, 1, 2, 2, 2), certain)
    assert result.dtype == torch.float32
    assert torch.isfinite(result).all()
    assert (result.argmax(dim=1) == 0).all()
    assert result.softmax(dim=1)[:, 1].max() < 1e-37


@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize("window", [None, 8])
def test_repeated_calls_give_the_same_bits(flips: bool, window: int | None) -> None:
    network = random_unet(num_levels=3)
    image = noise(1, 4, 16, 12, 8)
    before = image.clone()
    inferer = VolumeInferer(window=window, flips=flips, divisor=4)
    first = inferer(image, network)
    assert torch.equal(first, inferer(image, network))
    assert torch.equal(first, VolumeInferer(**vars_of(inferer))(image, copy.deepcopy(network)))
    assert torch.equal(image, before)


NAMES = ("window", "overlap", "flips", "divisor", "content_only")


def vars_of(inferer: VolumeInferer) -> dict[str, object]:
    return {name: getattr(inferer, name) for name in NAMES}


def test_a_window_that_holds_the_volume_is_the_whole_volume() -> None:
    network = random_unet(num_levels=2)
    image = noise(1, 4, 8, 6, 10)
    whole = VolumeInferer(divisor=2)(image, network)
    assert torch.equal(VolumeInferer(window=32, divisor=2)(image, network), whole)


@pytest.mark.parametrize("name", ["UNet3D", "DynUNet"])
def test_the_layout_of_the_cpu_changes_no_value(name: str) -> None:
    torch.manual_seed(0)
    network = build_network(name, in_channels=2, out_channels=3, **SMALL[name]).eval()
    parameters = list(network.parameters())
    image = noise(1, 2, 32, 16, 16)
    with torch.no_grad():
        plain = network(image)
        result = VolumeInferer(divisor=network.divisor)(image, network)
    # Float32 rounding through the layers of a network, relative to its logits of about 1.
    torch.testing.assert_close(result, plain, rtol=1e-4, atol=1e-4)
    kernels = [kernel for kernel in network.parameters() if kernel.dim() == 5]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last_3d) for kernel in kernels)
    assert all(a is b for a, b in zip(parameters, network.parameters(), strict=True))


class Layout(nn.Module):
    """Notes whether its input is laid out channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(2, 2, 3, padding=1)
        self.channels_last: list[bool] = []

    def forward(self, image: Tensor) -> Tensor:
        self.channels_last.append(image.is_contiguous(memory_format=torch.channels_last_3d))
        return self.convolution(image)


@pytest.mark.parametrize(("window", "flips"), [(None, False), (4, False), (4, True)])
def test_every_pass_gets_the_same_layout(window: int | None, flips: bool) -> None:
    network = Layout()
    with torch.no_grad():
        VolumeInferer(window=window, flips=flips)(noise(1, 2, 6, 5, 7), network)
    assert all(network.channels_last)


def test_a_network_can_still_be_trained_after_inference_mode() -> None:
    network = Layout()
    with torch.inference_mode():
        VolumeInferer()(noise(1, 2, 4, 4, 4), network)
    network(noise(1, 2, 4, 4, 4)).sum().backward()
    assert network.convolution.weight.grad is not None


def test_gradients_are_the_caller_s_business() -> None:
    network = Layout()
    assert VolumeInferer()(noise(1, 2, 4, 4, 4), network).requires_grad
    with torch.no_grad():
        assert not VolumeInferer()(noise(1, 2, 4, 4, 4), network).requires_grad


def test_torchscript_keeps_its_layout() -> None:
    network = torch.jit.trace(nn.Conv3d(2, 2, 3, padding=1), torch.zeros(1, 2, 4, 4, 4))
    image = noise(1, 2, 4, 5, 6)
    with torch.no_grad():
        assert torch.equal(VolumeInferer()(image, network), network(image))
    assert next(network.parameters()).is_contiguous()


def test_other_devices_keep_their_layout() -> None:
    network = nn.Conv3d(2, 2, 3, padding=1, device="meta")
    assert VolumeInferer()(torch.empty(1, 2, 4, 4, 4, device="meta"), network).shape[1] == 2
    assert network.weight.is_contiguous()


@pytest.mark.parametrize("window", [None, 2])
def test_the_network_gets_further_arguments_and_no_metadata(window: int | None) -> None:
    def scaled(image: Tensor, factor: float, *, condition: float) -> Tensor:
        assert type(image) is Tensor
        return image * factor + condition

    image = MetaTensor(ramps(4, 3, 2))
    result = VolumeInferer(window=window)(image, scaled, 2.0, condition=1.0)
    assert type(result) is Tensor
    torch.testing.assert_close(result, image.as_tensor() * 2 + 1)


def test_a_size_that_is_no_multiple_of_the_divisor_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"multiples of the divisor 8; found the size \(16, 12, 8\)"
    ):
        VolumeInferer(divisor=8)(torch.zeros(1, 4, 16, 12, 8), Channels())


@pytest.mark.parametrize("shape", [(4, 16, 16, 8), (1, 4, 16, 16), (1, 4, 0, 16, 8)])
def test_what_is_no_volume_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected a volume \(B, C, X, Y, Z\)"):
        VolumeInferer()(torch.zeros(shape), Channels())


@pytest.mark.parametrize("window", [0, -8, (8, 8), (8, 8, 8, 8), (8, 0, 8)])
def test_an_impossible_window_is_refused(window: object) -> None:
    with pytest.raises(ValueError, match="window must be one number of voxels of at least 1"):
        VolumeInferer(window=window)


@pytest.mark.parametrize("overlap", [-0.1, 1.0, 1.5, float("nan")])
def test_an_impossible_overlap_is_refused(overlap: float) -> None:
    with pytest.raises(ValueError, match=r"overlap must be a share of the window in \[0, 1\)"):
        VolumeInferer(overlap=overlap)


def test_an_impossible_divisor_is_refused() -> None:
    with pytest.raises(ValueError, match="divisor must be at least 1; found 0"):
        VolumeInferer(divisor=0)
