"""Weights of the article's Keras network: read from its `.h5` file into a `UNet3D`, without Keras.

Three layouts are understood, all of them HDF5 with one group per layer:

- `model.save("model2.h5")`, Keras 2 and 3: ``model_weights/conv3d_7/.../kernel:0`` and ``bias:0``
  (Keras 3 leaves out the ``:0``), with the order of the layers in the attribute ``layer_names``;
- `model.save_weights("model2.h5")` of Keras 2: the same without ``model_weights/``;
- `model.save_weights("model2.weights.h5")` of Keras 3: ``layers/conv3d_7/vars/0`` and ``1``, where
  only the number at the end of a layer's name tells the order.

In all of them the kernel and the bias of one convolution lie in the same group. The article's
arrays are (Z, X, Y, channel), ours (channel, X, Y, Z), so the axes of every kernel are permuted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import nn

from networks import UNet3D
from pipeline.errors import SettingsError

Shape = tuple[int, ...]
# What h5py raises when a file is damaged or is no HDF5 file at all.
HDF5_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError)


@dataclass(frozen=True)
class KerasConvolution:
    """One convolution as the file describes it; its numbers are not read yet.

    The kernel is (Z, X, Y, in, out), the bias (out,).
    """

    layer: str
    kernel: h5py.Dataset
    bias: h5py.Dataset | None

    @property
    def shapes(self) -> tuple[Shape, Shape | None]:
        """The shapes of kernel and bias, from the file's header."""
        return self.kernel.shape, None if self.bias is None else self.bias.shape


def load_keras_weights(path: Path, network: nn.Module) -> None:
    """Fill `network` with the weights of a Keras file made by the article's `create_unet`.

    Afterwards ``softmax(network(image))`` of an image (B, C, X, Y, Z) equals what Keras predicts
    for the same image as (B, Z, X, Y, C), to 1e-5. If anything is wrong with the file, `network`
    keeps the weights it has.

    Args:
        path: the `.h5` file; only numbers are read from it, nothing is unpickled or executed.
        network: a `UNet3D` without normalisation.

    Raises:
        SettingsError: `network` is another one; the file is missing, damaged or no HDF5 file; or
            the number or the shapes of its convolutions differ from those of `network`.
    """
    if not isinstance(network, UNet3D) or network.norm is not None:
        norm = f" with norm={network.norm!r}" if isinstance(network, UNet3D) else ""
        raise SettingsError(
            f"{path}: expected a UNet3D with norm=None to put Keras weights into; found "
            f"{type(network).__name__}{norm}. Choose that network, or leave the weights out"
        )
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv3d)]
    arrays = _read_arrays(path, expected=[_keras_shapes(layer) for layer in convolutions])
    with torch.no_grad():
        for layer, (kernel, bias) in zip(convolutions, arrays, strict=True):
            layer.weight.copy_(torch.from_numpy(to_torch_kernel(kernel)))
            if layer.bias is not None:
                layer.bias.copy_(torch.from_numpy(bias))


def to_torch_kernel(kernel: np.ndarray) -> np.ndarray:
    """Return a Keras kernel (Z, X, Y, in, out) as torch's (out, in, X, Y, Z), contiguous."""
    return np.ascontiguousarray(kernel.transpose(4, 3, 1, 2, 0))


def _keras_shapes(layer: nn.Conv3d) -> tuple[Shape, Shape]:
    """Return the shapes that the kernel and the bias of `layer` have in Keras."""
    num_out, num_in, size_x, size_y, size_z = layer.weight.shape
    return (size_z, size_x, size_y, num_in, num_out), (num_out,)


def _read_arrays(
    path: Path, *, expected: Sequence[tuple[Shape, Shape]]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return kernel and bias of each convolution, float32, in the order of the network's layers."""
    try:
        with h5py.File(path, "r") as file:
            convolutions, layer_names = _find_convolutions(file)
            ordered = _in_layer_order(convolutions, layer_names=layer_names, path=path)
            # Shapes come from the file's header: nothing of an unexpected size is ever read.
            _check_shapes([c.shapes for c in ordered], expected=expected, path=path)
            return [(_read(c.kernel, path=path), _read(c.bias, path=path)) for c in ordered]
    except HDF5_ERRORS as error:
        raise SettingsError(
            f"{path}: expected a Keras HDF5 file, as model.save('model2.h5') or "
            f"model.save_weights('model2.weights.h5') writes it; found a file that cannot be read "
            f"as such: {error}. Check the path, copy the file anew, or save the model again in one "
            f"of these forms"
        ) from error


def _find_convolutions(file: h5py.File) -> tuple[list[KerasConvolution], list[str]]:
    """Return the convolutions of the file, in no order, and its `layer_names` (may be empty).

    A convolution is a group that holds a 5D dataset; the optimiser's moments are left out.
    `visititems` follows neither soft nor external links, so the file cannot point elsewhere.
    """
    kernels: dict[str, h5py.Dataset] = {}
    biases: dict[str, h5py.Dataset] = {}
    layer_names = list(file.attrs.get("layer_names", ()))

    def visit(name: str, item: h5py.HLObject) -> None:
        if name.startswith("optimizer"):
            return
        group = name.rpartition("/")[0]
        if isinstance(item, h5py.Group):
            layer_names.extend(item.attrs.get("layer_names", ()))
        elif isinstance(item, h5py.Dataset) and item.ndim == 5:
            kernels[group] = item
        elif isinstance(item, h5py.Dataset) and item.ndim == 1:
            biases[group] = item

    file.visititems(visit)
    convolutions = [
        KerasConvolution(group.removesuffix("/vars").rpartition("/")[2], kernel, biases.get(group))
        for group, kernel in kernels.items()
    ]
    # Keras 2 wrote bytes, Keras 3 writes text.
    return convolutions, [n.decode() if isinstance(n, bytes) else str(n) for n in layer_names]


def _in_layer_order(
    convolutions: Sequence[KerasConvolution], *, layer_names: Sequence[str], path: Path
) -> list[KerasConvolution]:
    """Sort convolutions as the model applies them: as in `layer_names`, else by their number.

    Never alphabetically: conv3d_10 comes after conv3d_9. The numbers may start anywhere.
    """
    if layer_names:
        position = {name: index for index, name in enumerate(layer_names)}
        return sorted(convolutions, key=lambda c: position[c.layer])
    stems = sorted({_stem_and_number(c.layer)[0] for c in convolutions})
    if len(stems) > 1:
        raise SettingsError(
            f"{path}: expected convolutions whose names differ only in their number, such as "
            f"conv3d_1 and conv3d_2; found {', '.join(stems)}, which tell no order. Save the "
            f"whole model with model.save('model2.h5'), which keeps the order"
        )
    return sorted(convolutions, key=lambda c: _stem_and_number(c.layer))


def _stem_and_number(layer: str) -> tuple[str, int]:
    """Split conv3d_7 into conv3d and 7; Keras gives the first layer of a kind no number."""
    stem, _, number = layer.rpartition("_")
    return (stem, int(number)) if stem and number.isdecimal() else (layer, 0)


def _check_shapes(
    found: Sequence[tuple[Shape, Shape | None]],
    *,
    expected: Sequence[tuple[Shape, Shape]],
    path: Path,
) -> None:
    """Raise unless the file's convolutions are those of the network, in number and shapes."""
    if list(found) == list(expected):
        return
    if len(found) != len(expected):
        difference = f"expected {len(expected)} convolutions; found {len(found)}"
    else:
        number, want, have = next(
            (number, want, have)
            for number, (want, have) in enumerate(zip(expected, found, strict=True), start=1)
            if want != have
        )
        difference = (
            f"expected convolution {number} of {len(expected)} to have a kernel (Z, X, Y, in, out) "
            f"of {want[0]} and a bias of {want[1]}; found {have[0]} and {have[1] or 'no bias'}"
        )
    raise SettingsError(f"{path}: {difference}. {_remedy(found)}")


def _remedy(found: Sequence[tuple[Shape, Shape | None]]) -> str:
    """Name the settings of the UNet3D that the file seems to come from."""
    # Two convolutions per level on the way down, two on the way up, and the output.
    num_levels, rest = divmod(len(found) - 1, 4)
    if num_levels < 1 or rest:
        return "This is not a model of the article's create_unet: choose another file"
    first, last = found[0][0], found[-1][0]
    return (
        f"The file's model has num_levels={num_levels}, num_filters={first[-1]}, "
        f"kernel_size={first[0]}, {first[-2]} input and {last[-1]} output channels: build the "
        f"network with these, or choose another file"
    )


def _read(dataset: h5py.Dataset, *, path: Path) -> np.ndarray:
    """Return the dataset as float32, if it is made of finite numbers that lie in this very file."""
    where = f"{path}, {dataset.name}"
    if dataset.external or dataset.is_virtual:
        raise SettingsError(
            f"{where}: expected numbers inside the file; found a reference to another file. "
            f"Do not use this file: Keras writes no such thing"
        )
    if dataset.dtype.kind != "f":
        raise SettingsError(
            f"{where}: expected floating-point numbers; found {dataset.dtype}. Save the model in "
            f"float32, not quantised"
        )
    array = dataset[()].astype(np.float32)
    if not np.isfinite(array).all():
        raise SettingsError(
            f"{where}: expected finite numbers; found NaN or infinity. The training that wrote "
            f"this file had failed: choose an earlier one"
        )
    return array
