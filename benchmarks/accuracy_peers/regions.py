"""The regions of a data list as nested ones, as both peers train them: one output each."""

from __future__ import annotations

from dataclasses import dataclass

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
    inner = [set(of_region[name]) for name in order[1:]] + [set()]
    rests = [set(of_region[name]) - smaller for name, smaller in zip(order, inner, strict=True)]
    nested = all(
        smaller <= set(of_region[name]) for name, smaller in zip(order, inner, strict=True)
    )
    every_class = set(range(1, len(datalist.labels)))
    if not nested or any(len(rest) != 1 for rest in rests) or set().union(*rests) != every_class:
        raise SettingsError(
            f"{datalist.path.name}: expected regions that lie in each other, each with one label "
            f"more than the next, as WT, TC and ET; found {datalist.regions}. "
            "nnunet and segresnet cannot be compared on this list: leave them out of --methods."
        )
    return tuple(
        NestedRegion(name, tuple(sorted(of_region[name])), rest.pop())
        for name, rest in zip(order, rests, strict=True)
    )
