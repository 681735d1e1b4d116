"""A case as bytes: what is unpacked is what was packed, and what is damaged is not believed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.utils import SpaceKeys

from pipeline.data.compact import compact_case, restore_case
from pipeline.data.packing import DIGEST_BYTES, pack_case, unpack_case


def make_case() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    image = torch.zeros(2, 6, 5, 7)
    image[:, 1:4, 1:5, 2:6] = torch.randint(0, 1001, (2, 3, 4, 4), generator=generator) / 1000
    tracked = MetaTensor(
        image,
        affine=torch.diag(torch.tensor([0.1, 1 / 3, 2.0, 1.0], dtype=torch.float64)),
        meta={"space": SpaceKeys.RAS, "spatial_shape": np.asarray([6, 5, 7])},
    )
    tracked.push_applied_operation(
        {
            "class": "Crop",
            "id": 140585673667216,
            "orig_size": (6, 5, 7),
            "tracing": True,
            "nothing": None,
            "extra_info": {"cropped": [1, 2], "padded": ((0, 0), (1, 2)), "factor": 0.1},
        }
    )
    label = (image[:1] > 0.5).to(torch.uint8)
    z_score = torch.randn(1, 3, 3, 3, generator=generator)
    return {"image": tracked, "label": label, "z": z_score, "case": "Fall größer"}


def packed_case(**options: Any) -> bytes:
    return pack_case(compact_case(make_case(), divisor=1000), **options)


def test_a_case_comes_back_to_the_last_bit() -> None:
    case, again = make_case(), restore_case(unpack_case(packed_case()))
    assert again.keys() == case.keys()
    assert again["case"] == case["case"]
    for key in ("image", "label", "z"):
        left, right = torch.as_tensor(again[key]), torch.as_tensor(case[key])
        assert left.dtype == right.dtype
        assert left.numpy().tobytes() == right.numpy().tobytes()


def test_metadata_and_trace_come_back_with_their_types() -> None:
    image, again = make_case()["image"], restore_case(unpack_case(packed_case()))["image"]
    assert again.applied_operations == image.applied_operations
    assert isinstance(again.applied_operations[0]["orig_size"], tuple)
    assert again.affine.dtype == torch.float64
    assert torch.equal(again.affine, image.affine)
    assert again.meta["space"] == SpaceKeys.RAS
    assert again.meta["spatial_shape"].dtype == image.meta["spatial_shape"].dtype
    assert again.meta["spatial_shape"].tolist() == [6, 5, 7]


def test_packing_twice_gives_the_same_bytes() -> None:
    assert packed_case() == packed_case()
    assert pack_case(unpack_case(packed_case())) == packed_case()


def test_a_name_is_asked_for() -> None:
    packed = packed_case(name="a")
    assert unpack_case(packed, name="a")["case"] == unpack_case(packed)["case"]
    with pytest.raises(ValueError, match="of another case"):
        unpack_case(packed, name="b")


def test_no_changed_byte_is_believed() -> None:
    packed = packed_case()
    for place in range(0, len(packed), 7):
        damaged = bytearray(packed)
        damaged[place] ^= 16
        with pytest.raises(ValueError, match="SHA-256"):
            unpack_case(bytes(damaged))


@pytest.mark.parametrize("length", [0, 5, DIGEST_BYTES, DIGEST_BYTES + 4, -1])
def test_no_part_is_believed(length: int) -> None:
    with pytest.raises(ValueError, match="SHA-256"):
        unpack_case(packed_case()[:length])


def test_another_format_is_refused() -> None:
    content = packed_case()[DIGEST_BYTES:].replace(b"compact case, 1", b"compact case, 0")
    with pytest.raises(ValueError, match="another format"):
        unpack_case(hashlib.sha256(content).digest() + content)


@pytest.mark.parametrize("value", [Path("a"), np.array(["a"]), np.array([None]), {1: 2}, object()])
def test_what_has_no_plain_words_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match=r"expected (plain values|texts as keys)"):
        pack_case({"case": "a", "more": value})


def test_few_levels_take_few_bytes() -> None:
    smooth = torch.linspace(0, 1, 64).mul(1000).round().div(1000)
    volume = smooth[:, None, None].expand(64, 64, 64)[None].contiguous()
    compact = compact_case({"image": volume}, divisor=1000)
    assert len(pack_case(compact)) < compact["image"].nbytes / 20
