"""The regions of a data list as nested ones, as both peers train them: one output each."""

from __future__ import annotations

from dataclasses import dataclass

from networks.region_outputs import ring_classes
from pipeline.data.datalist import DataList
from pipeline.errors import SettingsError


@dataclass(frozen=True)
class NestedRegion:
    """A region, its class indices, and the one class that it has and the next smaller has not."""

    name: str
    classes: tuple[int, ...]
    painted: int


def nested_regions(datalist: DataList) -> tuple[NestedRegion, ...]:
    """Return the regions from the largest to the smallest, as WT, TC, ET are.

    Painted one over the other in this order, each with its class, they give the classes again: so
    nnU-Net (`regions_class_order`) and MONAI's zoo recipe make label maps of their outputs.

    Raises:
        SettingsError: The regions are not nested so, each with one class more than the next, down
            to one class, or they leave out a class.
    """
    of_region = datalist.region_classes()
    order = sorted(of_region, key=lambda name: -len(of_region[name]))
    try:
        painted = ring_classes([of_region[name] for name in order])
    except ValueError:
        painted = []
    if len(painted) != len(datalist.labels) - 1:
        raise SettingsError(
            f"{datalist.path.name}: expected regions that lie in each other, each with one label "
            f"more than the next, as WT, TC and ET; found {datalist.regions}. "
            "nnunet and segresnet cannot be compared on this list: leave them out of --methods."
        )
    return tuple(
        NestedRegion(name, tuple(sorted(of_region[name])), class_index)
        for name, class_index in zip(order, painted, strict=True)
    )
