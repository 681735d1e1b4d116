"""python -m benchmarks.accuracy_peers.segresnet_script (train | predict) JOB.json

MONAI's published recipe for BraTS, as its model zoo states it: the bundle `brats_mri_segmentation`
0.4.2, configs/train.json and inference.json (Project-MONAI/model-zoo), after Myronenko 2018
(arXiv 1810.11654). Nothing of this project takes part but the reading of the data list and the
writing of masks. What differs from the bundle, and why:

- images and labels are on a grid of `spacing_mm` (after the normalisation, as nnU-Net orders it),
  and sizes in voxels are divided by it: all sides work on the same grid;
- a case is read and resampled once and kept in memory, not anew each epoch; that is quicker;
- volumes whose edges are no multiple of 8 are padded, which never happens at the published sizes;
- the weights after the last epoch are used: no checkpoint is chosen on the cases that are scored.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset, DataLoader, MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.losses import DiceLoss
from monai.networks.nets import SegResNet
from monai.transforms import (
    Compose,
    DivisiblePadd,
    EnsureChannelFirstd,
    Invertd,
    LoadImaged,
    NormalizeIntensityd,
    RandFlipd,
    RandScaleIntensityd,
    RandShiftIntensityd,
    RandSpatialCropd,
    Spacingd,
)
from monai.utils import set_determinism

from benchmarks.accuracy_peers.regions import NestedRegion, nested_regions
from pipeline.data.datalist import Case, DataList, read_datalist
from pipeline.data.files import replace_file
from pipeline.data.json_files import json_bytes
from pipeline.data.nifti import write_volume
from pipeline.data.prediction_files import mask_path

CROP_MM = (224, 224, 144)
WINDOW_MM = (240, 240, 160)
DIVISOR = 8
LEARNING_RATE = 1e-4
WEIGHT_DECAY = 1e-5
SEED = 123


class ToRegions:
    """Turns a case's label, (1, X, Y, Z) in its own values, into one channel a region."""

    def __init__(self, regions: Sequence[NestedRegion]) -> None:
        self.regions = regions

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Return a copy of `item` with the channels."""
        label = item["label"]
        values = item["values"]
        channels = [
            torch.isin(
                label[0], torch.tensor([values[index] for index in region.classes]).to(label)
            )
            for region in self.regions
        ]
        return {**item, "label": MetaTensor(torch.stack(channels).float(), meta=label.meta)}


def build_network(*, in_channels: int, out_channels: int) -> SegResNet:
    """Return the bundle's network."""
    return SegResNet(
        blocks_down=(1, 2, 2, 4),
        blocks_up=(1, 1, 1),
        init_filters=16,
        in_channels=in_channels,
        out_channels=out_channels,
        dropout_prob=0.2,
    )


def voxels(edges_mm: Sequence[int], spacing_mm: float) -> tuple[int, ...]:
    """Return edges in voxels: multiples of `DIVISOR`, the nearest ones."""
    return tuple(max(1, round(edge / spacing_mm / DIVISOR)) * DIVISOR for edge in edges_mm)


def preprocessing(keys: Sequence[str], *, spacing_mm: float) -> list[Any]:
    """Return the transforms of images ("image") and of labels ("label") that draw nothing."""
    modes = {"image": "bilinear", "label": "nearest"}
    return [
        LoadImaged(keys, reader="NibabelReader"),
        EnsureChannelFirstd(keys),
        NormalizeIntensityd("image", nonzero=True, channel_wise=True),
        Spacingd(keys, pixdim=(spacing_mm,) * 3, mode=[modes[key] for key in keys]),
    ]


def augmentation(*, spacing_mm: float) -> list[Any]:
    """Return the bundle's random transforms."""
    both = ("image", "label")
    return [
        RandSpatialCropd(both, roi_size=voxels(CROP_MM, spacing_mm), random_size=False),
        DivisiblePadd(both, k=DIVISOR),
        *(RandFlipd(both, prob=0.5, spatial_axis=axis) for axis in range(3)),
        RandScaleIntensityd("image", factors=0.1, prob=1.0),
        RandShiftIntensityd("image", offsets=0.1, prob=1.0),
    ]


def train(job: dict[str, Any], datalist: DataList) -> dict[str, Any]:
    """Train the job's fold on `max_cases` of its cases; write the weights, return times."""
    set_determinism(SEED)
    torch.backends.cudnn.benchmark = True
    device = torch.device(job["device"])
    cases, _ = datalist.split(job["fold"])
    loader = _loader(cases[: job["max_cases"]], job, nested_regions(datalist))
    network = _network(datalist).to(device)
    loss_of = DiceLoss(smooth_nr=0, smooth_dr=1e-5, squared_pred=True, sigmoid=True)
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=job["epochs"])
    scaler = torch.amp.GradScaler(enabled=device.type == "cuda")
    seconds, losses = [], []
    for _ in range(job["epochs"]):
        clock = time.perf_counter()
        for batch in loader:
            optimizer.zero_grad()
            with torch.autocast(device.type, enabled=scaler.is_enabled()):
                output = network(batch["image"].to(device))
                loss = loss_of(output, batch["label"].to(device))
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            losses.append(loss.item())
            seconds.append(time.perf_counter() - clock)
            clock = time.perf_counter()
        schedule.step()
    temporary = Path(job["weights"]).with_suffix(".tmp")
    torch.save(network.state_dict(), temporary)
    temporary.replace(job["weights"])
    return {
        "steps": len(seconds),
        "step_seconds": seconds,
        "losses": losses,
        "parameters": sum(each.numel() for each in network.parameters()),
    }


def predict(job: dict[str, Any], datalist: DataList) -> dict[str, Any]:
    """Write the masks of the job's cases: probabilities on the case's own grid, thresholded."""
    device = torch.device(job["device"])
    network = _network(datalist).to(device).eval()
    network.load_state_dict(torch.load(job["weights"], map_location=device, weights_only=True))
    chain = Compose(preprocessing(("image",), spacing_mm=job["spacing_mm"]))
    window = voxels(WINDOW_MM, job["spacing_mm"])
    inferer = SlidingWindowInferer(window, sw_batch_size=1, overlap=0.5)
    regions = nested_regions(datalist)
    values = np.array(tuple(datalist.labels.values()))
    wanted = [case for case in datalist.training if case.id in job["cases"]]
    for case in wanted:
        item = chain({"image": list(map(str, case.images))})
        image = item["image"].to(device)
        with torch.no_grad(), torch.autocast(device.type, enabled=device.type == "cuda"):
            output = inferer(image[None], network)[0]
        classes, affine = _classes(item, output.float().sigmoid().cpu(), chain, regions)
        path = mask_path(Path(job["masks"]), case.id)
        write_volume(path, values[classes], affine=affine, dtype=np.uint8)
    return {"cases": len(wanted)}


def _classes(
    item: dict[Hashable, Any],
    probabilities: torch.Tensor,
    chain: Compose,
    regions: Sequence[NestedRegion],
) -> tuple[np.ndarray, np.ndarray]:
    """Return class indices (X, Y, Z) on the case's own grid, and its affine."""
    image = item["image"]
    item["pred"] = MetaTensor(
        probabilities.as_subclass(torch.Tensor),
        meta=image.meta,
        applied_operations=image.applied_operations,
    )
    inverted = Invertd("pred", transform=chain, orig_keys="image", nearest_interp=False)(item)
    pred = inverted["pred"]
    classes = np.zeros(pred.shape[1:], dtype=np.uint8)
    for channel, region in zip(pred.numpy(), regions, strict=True):
        classes[channel > 0.5] = region.painted
    return classes, np.asarray(pred.affine)


def _loader(
    cases: Sequence[Case], job: dict[str, Any], regions: Sequence[NestedRegion]
) -> DataLoader:
    items = [
        {
            "image": list(map(str, case.images)),
            "label": str(case.label),
            "values": list(case.label_values),
        }
        for case in cases
    ]
    spacing_mm = job["spacing_mm"]
    fixed = [*preprocessing(("image", "label"), spacing_mm=spacing_mm), ToRegions(regions)]
    chain = Compose([*fixed, *augmentation(spacing_mm=spacing_mm)])
    chain.set_random_state(SEED)
    # One thread: with two, MONAI's reader once came back with one of the four images, and did not
    # say so. What it costs is before the first step, and in no budget.
    dataset = CacheDataset(items, chain, num_workers=1, progress=False)
    return DataLoader(dataset, batch_size=1, shuffle=True, num_workers=0)


def _network(datalist: DataList) -> SegResNet:
    return build_network(
        in_channels=len(datalist.modalities), out_channels=len(nested_regions(datalist))
    )


def main() -> None:
    """Run one stage."""
    stage, path = sys.argv[1:]
    job = json.loads(Path(path).read_text())
    datalist = read_datalist(Path(job["list"]), allow_outside_root=job["allow_outside_root"])
    result = {"train": train, "predict": predict}[stage](job, datalist)
    replace_file(Path(job["result"]), json_bytes(result))


if __name__ == "__main__":
    main()
