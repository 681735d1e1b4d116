"""C8: one case, from its files to its mask, beside what a competent user of MONAI would write."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.inferers import SlidingWindowInferer
from monai.transforms import (
    AsDiscreted,
    Compose,
    Invertd,
    Lambdad,
    LoadImaged,
    MapLabelValued,
    Orientationd,
    SaveImaged,
    SpatialCropd,
)
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.data import MODALITIES, BenchmarkCase, benchmark_cases
from benchmarks.measure import Comparison, compare
from benchmarks.network import MEMORY, by_default
from networks import build_network
from pipeline.config import build_inference_settings, build_settings
from pipeline.data.datalist import Case
from pipeline.data.loading import LoadCase
from pipeline.data.prediction_files import mask_path
from pipeline.inference.segmentation import Segmenter
from pipeline.inference.session import segment_cases
from pipeline.model.device import choose_device
from pipeline.model.trained import TrainedModel
from pipeline.signals import StopRequest
from transforms import build_preprocessing

WINDOW = (128, 128, 128)
OVERLAP = 0.5
FILTERS = (16, 32, 64, 128)
AXIS_LABELS = (("L", "R"), ("P", "A"), ("I", "S"))
LABELS = {"background": 0, "necrotic_core": 1, "oedema": 2, "enhancing_tumour": 4}
REGIONS = {
    "WT": ["necrotic_core", "oedema", "enhancing_tumour"],
    "TC": ["necrotic_core", "enhancing_tumour"],
    "ET": ["enhancing_tumour"],
}
FITTED_VOXELS = 20_000  # of each class, at most
FITTING_STEPS = 100
DICE_SLACK = 0.005  # a window sees less of the case than the whole volume does, and may be lucky


def run(*, repeats: int) -> list[Comparison]:
    """Compare both ways from files to a mask; a round of the reference takes a minute or two."""
    (case, *_), data = benchmark_cases(1)
    device = choose_device("auto")
    model = fitted_model(case, device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        done = compare(
            "C8",
            "one case, files to mask",
            reference=(
                "MONAI: LoadImaged to SaveImaged, windows of 128^3, overlap 0.5",
                by_default(MonaiWay(model, case, folder / "theirs", device)),
            ),
            ours=("ours", OurWay(model, case, folder / "ours", device)),
            same=lambda theirs, ours: _dice_not_lower(theirs, ours, case.label),
            goal=1 / 9,
            data=data,
            repeats=repeats,
            notes=(
                "the article's network at full size, with the same weights on both sides: drawn at "
                "random, and the last layer fitted to this case, so that the Dice says something",
                f"{device.type}, {torch.get_num_threads()} threads; both networks are built before",
                MEMORY,
                "ours includes the digests of images and mask, the mask's verification, the record",
            ),
        )
    return [done]


class OurWay:
    """The product's segmentation of a case into an empty folder."""

    def __init__(
        self, model: TrainedModel, case: BenchmarkCase, folder: Path, device: torch.device
    ) -> None:
        self.case = our_case(case)
        self.folder = folder
        self.segmenter = Segmenter(
            [model],
            folder=folder,
            settings=build_inference_settings({}).model_dump(mode="json"),
            labels=LABELS,
            device=device,
            num_cases=1,
        )

    def __call__(self) -> Path:
        """Return the mask's path."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        outcome = segment_cases([self.case], segmenter=self.segmenter, stop=StopRequest())
        assert len(outcome.records) == 1, outcome.problems
        return mask_path(self.folder, self.case.id)


class MonaiWay:
    """The article's preprocessing, an eager U-Net in sliding windows, and MONAI's way back."""

    def __init__(
        self, model: TrainedModel, case: BenchmarkCase, folder: Path, device: torch.device
    ) -> None:
        self.files = {"image": list(map(str, case.images))}
        self.folder = folder
        self.device = device
        self.network = PlainUNet().eval().to(device)
        self.network.load_in_order(model.weights)
        self.inferer = SlidingWindowInferer(
            WINDOW, sw_batch_size=1, overlap=OVERLAP, mode="gaussian"
        )
        self.before = Compose(
            [
                LoadImaged("image"),
                Orientationd("image", axcodes="LPS", labels=AXIS_LABELS),
                SpatialCropd("image", roi_start=(8, 8, 6), roi_end=(232, 232, 150)),
                Lambdad("image", articles_intensities, track_meta=False),
            ]
        )
        self.after = Compose(
            [
                AsDiscreted("pred", argmax=True),
                Invertd("pred", transform=self.before, orig_keys="image"),
                MapLabelValued("pred", range(len(LABELS)), list(LABELS.values())),
                SaveImaged(
                    "pred",
                    output_dir=folder,
                    output_postfix="seg",
                    output_dtype=np.uint8,
                    resample=False,
                    separate_folder=False,
                    print_log=False,
                ),
            ]
        )

    def __call__(self) -> Path:
        """Return the mask's path."""
        item = self.before(self.files)
        with torch.no_grad():
            logits = self.inferer(item["image"][None].to(self.device), self.network)
        item["pred"] = logits[0].cpu()
        self.after(item)
        (path,) = self.folder.glob("*_seg.nii.gz")
        return path


def articles_intensities(image: Tensor) -> Tensor:
    """Return min-max with 3 decimals, Gaussian and sharpening of each modality, by SciPy."""
    channels = []
    for channel in np.asarray(image, dtype=np.float64):
        scaled = np.round((channel - channel.min()) / (channel.max() - channel.min()), 3)
        smooth = ndimage.gaussian_filter(scaled, sigma=1)
        channels.append(smooth - 0.3 * ndimage.laplace(smooth))
    image[:] = torch.from_numpy(np.stack(channels)).float()
    return image


class PlainUNet(nn.Module):
    """The article's network as it is usually written: enlarge, join, convolve."""

    def __init__(self) -> None:
        super().__init__()

        def block(num_in: int, num_out: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv3d(num_in, num_out, 3, padding=1),
                nn.ReLU(inplace=True),
                nn.Dropout(0.25),
                nn.Conv3d(num_out, num_out, 3, padding=1),
                nn.ReLU(inplace=True),
                nn.Dropout(0.25),
            )

        a, b, c, d = FILTERS
        pairs = ((len(MODALITIES), a), (a, b), (b, c), (c, d))
        self.down = nn.ModuleList(block(*pair) for pair in pairs)
        self.bottom = block(d, d)
        self.up = nn.ModuleList(
            block(below + here, here) for below, here in ((d, c), (c, b), (b, a))
        )
        self.last = nn.Conv3d(a, len(LABELS), 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        skips = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else F.max_pool3d(x, 2))
            skips.append(x)
        x = self.bottom(skips.pop())
        for block in self.up:
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0), skips.pop()], dim=1))
        logits: Tensor = self.last(x)
        return logits

    def load_in_order(self, weights: dict[str, Tensor]) -> None:
        """Take the weights of `UNet3D`, whose layers come in the same order."""
        own = self.state_dict()
        self.load_state_dict(dict(zip(own, weights.values(), strict=True)))


def our_case(case: BenchmarkCase) -> Case:
    """Return the case as the product knows cases, with the label values of its mask."""
    return Case(case.id, case.id, case.images, None, None, tuple(LABELS.values()))


def fitted_model(case: BenchmarkCase, device: torch.device) -> TrainedModel:
    """Return the article's network with random weights, its last layer fitted to one case."""
    torch.manual_seed(0)
    network = build_network("UNet3D", in_channels=len(MODALITIES), out_channels=len(LABELS)).eval()
    preprocessing = {
        **build_settings().preprocessing.model_dump(mode="json"),
        "divisor": network.divisor,
    }
    item, label = _prepared(case, preprocessing)
    seen: list[Tensor] = []
    layer = network.output
    assert isinstance(layer, nn.Conv3d)
    hook = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        network.to(device)(item.to(device)[None])
    hook.remove()
    network.cpu()
    _fit(layer, seen[0][0].cpu().flatten(1).T, label.flatten())
    header = {
        "name": "benchmark",
        "modality": list(MODALITIES),
        "labels": LABELS,
        "regions": REGIONS,
    }
    return TrainedModel(
        name="benchmark",
        weights=network.state_dict(),
        network={
            "name": "UNet3D",
            "in_channels": len(MODALITIES),
            "out_channels": len(LABELS),
        },
        preprocessing=preprocessing,
        header=header,
        settings={},
        scores={},
        versions={},
        trained_on=None,
    )


def _prepared(case: BenchmarkCase, preprocessing: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the image (C, X, Y, Z) and the classes (X, Y, Z) on the network's grid."""
    labelled = replace(our_case(case), label=case.label, label_values=values_of(case.label))
    item = build_preprocessing(**preprocessing)(LoadCase(labels=True)(labelled))
    return item["image"].as_tensor(), item["label"].as_tensor()[0].long()


def values_of(label: Path) -> tuple[int, ...]:
    """Return the voxel value of each class: before 2023, BraTS wrote 4 for enhancing tumour."""
    has_three = bool((np.asarray(nib.load(label).dataobj) == 3).any())
    return (0, 1, 2, 3) if has_three else tuple(LABELS.values())


def _fit(layer: nn.Conv3d, features: Tensor, classes: Tensor) -> None:
    """Fit a convolution of one voxel to (N, C) features and (N,) classes: logistic regression."""
    mean, deviation = features.mean(dim=0), features.std(dim=0).clamp(min=1e-6)
    counts = torch.bincount(classes, minlength=len(LABELS))
    generator = torch.Generator().manual_seed(0)
    chosen = torch.cat(list(_chosen(classes, generator)))
    x, y = (features[chosen] - mean) / deviation, classes[chosen]
    weight = torch.zeros(len(LABELS), features.shape[1], requires_grad=True)
    bias = torch.zeros(len(LABELS), requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=FITTING_STEPS)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = F.cross_entropy(x @ weight.T + bias, y) + 1e-4 * weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    # Back to features as they are, and from classes of equal size to their true shares.
    shares = counts / torch.bincount(y, minlength=len(LABELS)).clamp(min=1)
    with torch.no_grad():
        layer.weight.copy_((weight / deviation).reshape(layer.weight.shape))
        assert layer.bias is not None
        layer.bias.copy_(bias - (weight * (mean / deviation)).sum(dim=1) + shares.log())


def _chosen(classes: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    for index in range(len(LABELS)):
        places = (classes == index).nonzero()[:, 0]
        order = torch.randperm(len(places), generator=generator)
        yield places[order[:FITTED_VOXELS]]


def _dice_not_lower(theirs: Path, ours: Path, label: Path) -> str:
    scores = {name: mean_dice(path, label) for name, path in (("ours", ours), ("theirs", theirs))}
    masks = [np.asarray(nib.load(path).dataobj) for path in (theirs, ours)]
    agreement = float(np.mean(masks[0] == masks[1]))
    assert scores["ours"] >= scores["theirs"] - DICE_SLACK, scores
    return (
        f"mean Dice of WT, TC, ET with the reference mask {scores['ours']:.3f}, MONAI's "
        f"{scores['theirs']:.3f}; {agreement:.3%} of the voxels the same"
    )


def mean_dice(mask: Path, label: Path) -> float:
    """Return the mean of the regions' Dice of a mask with LABELS' values."""
    found, truth = (
        _classes(mask, tuple(LABELS.values())),
        _classes(label, values_of(label)),
    )
    names = list(LABELS)
    dice: list[float] = []
    for members in REGIONS.values():
        a, b = (np.isin(each, list(map(names.index, members))) for each in (found, truth))
        dice.append(2 * float((a & b).sum()) / max(float(a.sum() + b.sum()), 1.0))
    return float(np.mean(dice))


def _classes(path: Path, values: Sequence[int]) -> np.ndarray:
    return np.searchsorted(np.asarray(values), np.asarray(nib.load(path).dataobj))
