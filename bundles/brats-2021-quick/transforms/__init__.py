"""Transforms from a loaded case to the network and back; imports numpy, torch, monai only."""

from __future__ import annotations

from transforms.appearance import RandAppearanced
from transforms.augmentation import (
    RandInPlaneRotated,
    build_augmentation,
    rotate_in_plane,
    seed_of,
)
from transforms.bias_field import CorrectBiasFieldd, correct_bias_field
from transforms.cases import NameAfterCased, cases_of_fold, named_cases
from transforms.checks import RequireFinited, RequireSameGridd
from transforms.deformation import RandDeformedd
from transforms.geometry import (
    ORIENTATION,
    BorderCrop,
    BorderCropd,
    BrainBoxd,
    border_crop,
    border_restore,
    border_slices,
)
from transforms.intensity import (
    FilterIntensitiesd,
    GaussianFilter,
    GaussianFilterd,
    LaplacianSharpen,
    LaplacianSharpend,
    MinMaxNormalize,
    MinMaxNormalized,
    filter_intensities,
    gaussian_filter,
    laplacian_sharpen,
    min_max_normalize,
)
from transforms.labels import (
    ClassesToLabelValues,
    ClassesToLabelValuesd,
    ClassesToRegions,
    ClassesToRegionsd,
    LabelValuesToClasses,
    LabelValuesToClassesd,
    classes_to_regions,
    classes_to_values,
    values_to_classes,
)
from transforms.postprocessing import build_postprocessing, decided_classes
from transforms.preprocessing import build_preprocessing, build_stored_and_live

__all__ = [
    "ORIENTATION",
    "BorderCrop",
    "BorderCropd",
    "BrainBoxd",
    "ClassesToLabelValues",
    "ClassesToLabelValuesd",
    "ClassesToRegions",
    "ClassesToRegionsd",
    "CorrectBiasFieldd",
    "FilterIntensitiesd",
    "GaussianFilter",
    "GaussianFilterd",
    "LabelValuesToClasses",
    "LabelValuesToClassesd",
    "LaplacianSharpen",
    "LaplacianSharpend",
    "MinMaxNormalize",
    "MinMaxNormalized",
    "NameAfterCased",
    "RandAppearanced",
    "RandDeformedd",
    "RandInPlaneRotated",
    "RequireFinited",
    "RequireSameGridd",
    "border_crop",
    "border_restore",
    "border_slices",
    "build_augmentation",
    "build_postprocessing",
    "build_preprocessing",
    "build_stored_and_live",
    "cases_of_fold",
    "classes_to_regions",
    "classes_to_values",
    "correct_bias_field",
    "decided_classes",
    "filter_intensities",
    "gaussian_filter",
    "laplacian_sharpen",
    "min_max_normalize",
    "named_cases",
    "rotate_in_plane",
    "seed_of",
    "values_to_classes",
]
