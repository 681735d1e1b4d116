"""The presets: in what each differs from the defaults of `pipeline.config`, the article's."""

from __future__ import annotations

from typing import Any

# "original" is the article to the letter, so it changes nothing.
PRESETS: dict[str, dict[str, Any]] = {
    "original": {},
    "quick": {
        "preprocessing": {
            "border_crop": None,
            "brain_box": True,
            "bias_field_share": 0.5,
            "normalization": "zscore",
            "sharpen_strength": None,
            "spacing_mm": 2.0,
        },
        "augmentation": {
            "rotation_probability": 0.0,
            "flip_axes": [0, 1, 2],
            "deformation": {"probability": 0.5, "rotation_degrees": 15.0, "scale": 1.15},
            "appearance": {
                "noise_probability": 0.15,
                "noise_sigma": 0.2,
                "brightness_probability": 1.0,
                "brightness": 0.15,
                "offset_probability": 1.0,
                "gamma_probability": 0.3,
            },
        },
        "network": {
            "name": "UNet3D",
            "settings": {"num_filters": 8, "norm": "instance", "dropout": 0.0},
        },
        "training": {
            "max_epochs": 60,
            "loss": "dice_ce",
            "learning_rate": 2e-3,
            "schedule": "cosine",
            "warmup_fraction": 0.05,
            "gradient_clip": 1.0,
        },
        "validation": {"every_epochs": 5},
        "inference": {"flips": True},
    },
    "strong": {
        "preprocessing": {
            "border_crop": None,
            "brain_box": True,
            "bias_field_share": 0.5,
            "normalization": "zscore",
            "gaussian_sigma": None,
            "sharpen_strength": None,
        },
        "augmentation": {
            "rotation_probability": 0.0,
            "flip_axes": [0, 1, 2],
            "deformation": {"probability": 0.3, "elastic_probability": 0.1},
            "appearance": {
                "noise_probability": 0.1,
                "blur_probability": 0.2,
                "brightness_probability": 0.15,
                "contrast_probability": 0.15,
                "gamma_probability": 0.4,
                "low_resolution_probability": 0.25,
            },
        },
        "network": {
            "name": "UNet3D",
            "outputs": "regions",
            "settings": {
                "num_filters": 24,
                "norm": "instance",
                "dropout": 0.0,
                "residual": True,
                "deep_supervision": 2,
            },
        },
        "training": {
            "max_epochs": 300,
            "loss": "dice_ce",
            "learning_rate": 1e-3,
            "weight_decay": 1e-4,
            "schedule": "cosine",
            "warmup_fraction": 0.02,
            "gradient_clip": 1.0,
            "ema_decay": 0.999,
        },
        "validation": {"every_epochs": 10},
        "inference": {"flips": True},
    },
}
