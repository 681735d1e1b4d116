"""The networks one can choose from: a name for each, and how it is built from plain settings.

Every network maps an image (B, in_channels, X, Y, Z) to logits (B, out_channels, X, Y, Z) and has
an attribute `divisor`: X, Y and Z must be multiples of it. In training it may return a list, with
the logits of coarser levels behind its own, each half the size of the one before.

To add one, write its builder and give it a line in `NETWORKS`. A builder takes `in_channels`,
`out_channels` and settings that JSON can hold; the settings of MONAI's networks keep MONAI's names.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from monai.networks.nets import DynUNet, SegResNet, SwinUNETR
from torch import nn

from networks.ensemble import Ensemble
from networks.inferers import VolumeInferer
from networks.region_outputs import RegionOutputs
from networks.unet3d import UNet3D

__all__ = ["NETWORKS", "UNet3D", "VolumeInferer", "build_network"]


def segresnet(
    *,
    in_channels: int,
    out_channels: int,
    init_filters: int = 16,
    blocks_down: Sequence[int] = (1, 2, 2, 4),
    blocks_up: Sequence[int] = (1, 1, 1),
    dropout_prob: float = 0.2,
) -> nn.Module:
    """Return MONAI's SegResNet; the defaults are those of MONAI's BraTS bundle.

    Args:
        in_channels: number of modalities.
        out_channels: number of classes.
        init_filters: filters at the top level, a multiple of 8 (the groups of its normalisation).
        blocks_down: residual blocks per level on the way down.
        blocks_up: residual blocks per level on the way up, one level fewer.
        dropout_prob: dropout after the first convolution.

    Raises:
        ValueError: `blocks_up` does not have one level fewer than `blocks_down`.

    Source: Myronenko, 2018, arXiv:1810.11654, without its variational branch.
    """
    if len(blocks_up) != len(blocks_down) - 1:
        raise ValueError(
            f"blocks_up must have one level fewer than blocks_down: expected "
            f"{len(blocks_down) - 1} numbers, found {len(blocks_up)}"
        )
    network = SegResNet(
        in_channels=in_channels,
        out_channels=out_channels,
        init_filters=init_filters,
        blocks_down=tuple(blocks_down),
        blocks_up=tuple(blocks_up),
        dropout_prob=dropout_prob,
    )
    return _with_divisor(network, 2 ** len(blocks_up))


def dynunet(
    *,
    in_channels: int,
    out_channels: int,
    filters: Sequence[int] = (32, 64, 128, 256, 320),
    res_block: bool = False,
) -> nn.Module:
    """Return MONAI's DynUNet: nnU-Net's network with 3x3x3 kernels, without deep supervision.

    MONAI's setting `dropout` is left out: it would drop values of the logits too.

    Args:
        in_channels: number of modalities.
        out_channels: number of classes.
        filters: filters per level, from the top; at least three levels.
        res_block: residual instead of plain blocks.

    Raises:
        ValueError: fewer than three levels.

    Source: Isensee et al., Nature Methods 18, 2021.
    """
    num_levels = len(filters)
    if num_levels < 3:
        raise ValueError(f"filters must have at least three levels; found {list(filters)}")
    strides = [1] + [2] * (num_levels - 1)
    network = DynUNet(
        spatial_dims=3,
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=[3] * num_levels,
        strides=strides,
        upsample_kernel_size=strides[1:],
        filters=list(filters),
        res_block=res_block,
        deep_supervision=False,
    )
    return _with_divisor(network, 2 ** (num_levels - 1))


def swin_unetr(
    *,
    in_channels: int,
    out_channels: int,
    feature_size: int = 48,
    drop_rate: float = 0.0,
    attn_drop_rate: float = 0.0,
    dropout_path_rate: float = 0.0,
    use_checkpoint: bool = False,
) -> nn.Module:
    """Return MONAI's SwinUNETR, a U-Net whose encoder is a Swin transformer.

    Args:
        in_channels: number of modalities.
        out_channels: number of classes.
        feature_size: channels at the top level, a multiple of 12.
        drop_rate: dropout in the transformer.
        attn_drop_rate: dropout of the attention weights.
        dropout_path_rate: probability that a whole transformer block is skipped.
        use_checkpoint: compute activations twice instead of keeping them: less memory, more time.

    Raises:
        ImportError: the package `einops`, which MONAI's implementation calls, is not installed.
        ValueError: `feature_size` is not a multiple of 12.

    Source: Hatamizadeh et al., 2022, arXiv:2201.01266.
    """
    # MONAI itself would only notice at the first image, after the data has been loaded.
    if importlib.util.find_spec("einops") is None:
        raise ImportError("SwinUNETR needs the package einops: pip install einops")
    network = SwinUNETR(
        in_channels=in_channels,
        out_channels=out_channels,
        feature_size=feature_size,
        drop_rate=drop_rate,
        attn_drop_rate=attn_drop_rate,
        dropout_path_rate=dropout_path_rate,
        use_checkpoint=use_checkpoint,
        spatial_dims=3,
    )
    # It halves the image five times: once into patches of 2x2x2, then after each of four stages.
    return _with_divisor(network, 2**5)


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "UNet3D": UNet3D,
    "SegResNet": segresnet,
    "DynUNet": dynunet,
    "SwinUNETR": swin_unetr,
}


def build_network(
    name: str,
    *,
    in_channels: int,
    out_channels: int,
    regions: Sequence[Sequence[int]] | None = None,
    num_members: int = 1,
    **settings: Any,
) -> nn.Module:
    """Return a freshly initialised network that maps (B, in_channels, X, Y, Z) to logits.

    Args:
        name: a key of `NETWORKS`.
        in_channels: number of modalities.
        out_channels: number of classes.
        regions: where given, the network has an output for each region instead of each class; see
            `networks.region_outputs.RegionOutputs`, which makes classes of them.
        num_members: more than one is an `Ensemble` of as many such networks.
        settings: the named network's own settings, plain JSON values.

    Returns:
        The network, with an int attribute `divisor`.

    Raises:
        ValueError: the name or a setting is unknown, or a setting's value is out of range.
    """
    if name not in NETWORKS:
        raise ValueError(_unknown("network", name, NETWORKS))
    if not isinstance(num_members, int) or num_members < 1:
        raise ValueError(f"num_members must be at least 1; found {num_members!r}")
    builder = NETWORKS[name]
    known = inspect.signature(builder).parameters.keys() - {"in_channels", "out_channels"}
    for setting in settings:
        if setting not in known:
            raise ValueError(_unknown(f"setting of {name}", setting, known))

    def build() -> nn.Module:
        if regions is None:
            return builder(in_channels=in_channels, out_channels=out_channels, **settings)
        if len(regions) != out_channels - 1:
            raise ValueError(
                f"region outputs need as many regions as there are classes beside the background, "
                f"{out_channels - 1}; found {len(regions)}"
            )
        network = builder(in_channels=in_channels, out_channels=len(regions), **settings)
        return RegionOutputs(network, regions=regions)

    return build() if num_members == 1 else Ensemble(build() for _ in range(num_members))


def _unknown(what: str, found: str, known: Iterable[str]) -> str:
    close = get_close_matches(found, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"unknown {what}: {found!r}.{hint} Choose from: {', '.join(sorted(known))}"


def _with_divisor(network: nn.Module, divisor: int) -> nn.Module:
    network.divisor = divisor  # type: ignore[assignment]  # torch declares modules and tensors only
    return network
