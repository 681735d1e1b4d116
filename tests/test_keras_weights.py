"""`UNet3D` against the article's `create_unet` in Keras, and the import of Keras' `.h5` files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from networks import UNet3D, build_network
from pipeline.errors import SettingsError
from pipeline.training.keras_weights import load_keras_weights, to_torch_kernel

Arrays = list[tuple[np.ndarray, np.ndarray]]
TINY: dict[str, Any] = {"num_levels": 2, "num_filters": 2}  # nine convolutions


# Keras 3.15's own conversion of torch tensors does not know NumPy 2's `copy` yet.
asks_keras = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)


# ---- The reference ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keras() -> Iterator[ModuleType]:
    """Keras on torch: its backend is chosen when it is first imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "KERAS_BACKEND", "torch")
        yield pytest.importorskip("keras", reason="parity is measured against Keras itself")


def create_unet(
    keras: ModuleType, *, num_layers: int, num_neurons: int, input_shape: Sequence[int | None]
) -> Any:
    """The network of the article "3D UNet for Brain Tumor Segmentation", M. Abdul Gafoor, 2022.

    Its kernel of 3 and dropout of 0.25 are written in; `input_shape` is (Z, X, Y, channel).
    """
    layers = keras.layers

    def two_convolutions(x: Any, num_filters: int) -> Any:
        for _ in range(2):
            x = layers.Conv3D(num_filters, 3, activation="relu", padding="same")(x)
            x = layers.Dropout(rate=0.25)(x)
        return x

    x = inputs = layers.Input(shape=input_shape)
    conv_layers = []
    for i in range(num_layers):
        x = two_convolutions(x, num_neurons * 2**i)
        conv_layers.append(x)
        if i < num_layers - 1:
            x = layers.MaxPooling3D((2, 2, 2))(x)
    for i in range(num_layers - 1, -1, -1):
        if i < num_layers - 1:
            x = layers.UpSampling3D((2, 2, 2))(x)
            x = layers.concatenate([x, conv_layers[i]], axis=-1)
        x = two_convolutions(x, num_neurons * 2**i)
    outputs = layers.Conv3D(4, 1, activation="softmax")(x)
    return keras.Model(inputs=inputs, outputs=outputs)


def random_arrays(shapes: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> Arrays:
    """Kernels that keep the size of the signal, and biases that are not zero."""
    rng = np.random.default_rng(0)
    return [
        (
            rng.normal(0, np.sqrt(2 / np.prod(kernel[:4])), kernel).astype(np.float32),
            rng.normal(0, 0.2, bias).astype(np.float32),
        )
        for kernel, bias in shapes
    ]


def article_model(keras: ModuleType, *, num_layers: int = 4, num_neurons: int = 16) -> Any:
    """Build a model of any spatial size and give it random weights, layer by layer."""
    shape = (None, None, None, 4)
    model = create_unet(keras, num_layers=num_layers, num_neurons=num_neurons, input_shape=shape)
    convolutions = [layer for layer in model.layers if layer.weights]
    shapes = [tuple(tuple(w.shape) for w in layer.weights) for layer in convolutions]
    for layer, arrays in zip(convolutions, random_arrays(shapes), strict=True):
        layer.set_weights(arrays)
    return model


def random_image(shape: tuple[int, ...]) -> np.ndarray:
    """A batch of one case (1, 4, X, Y, Z), without any symmetry between its axes."""
    return np.random.default_rng(1).normal(size=(1, 4, *shape)).astype(np.float32)


def keras_probabilities(keras: ModuleType, model: Any, image: np.ndarray) -> np.ndarray:
    """Ask Keras in the article's axes (B, Z, X, Y, C); return (B, C, X, Y, Z)."""
    as_article = image.transpose(0, 4, 2, 3, 1)
    answer = keras.ops.convert_to_numpy(model(as_article, training=False))
    return answer.transpose(0, 4, 2, 3, 1)


def our_probabilities(network: nn.Module, image: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return torch.softmax(network.eval()(torch.from_numpy(image)), dim=1).numpy()


# ---- The network is the article's ---------------------------------------------------------------


@asks_keras
@pytest.mark.parametrize(
    ("num_levels", "num_filters", "shape"),
    [
        (4, 16, (16, 24, 8)),
        (4, 16, (8, 40, 24)),
        (3, 8, (12, 4, 20)),
        (1, 4, (7, 5, 9)),
    ],
)
def test_outputs_equal_those_of_the_articles_network(
    keras: ModuleType, num_levels: int, num_filters: int, shape: tuple[int, ...]
) -> None:
    model = article_model(keras, num_layers=num_levels, num_neurons=num_filters)
    network = UNet3D(num_levels=num_levels, num_filters=num_filters)
    theirs = [layer for layer in model.layers if layer.weights]
    ours = [layer for layer in network.modules() if isinstance(layer, nn.Conv3d)]
    for layer, source in zip(ours, theirs, strict=True):
        kernel, bias = source.get_weights()
        # (Z, X, Y, in, out) -> (X, Y, Z, in, out) -> (out, in, X, Y, Z)
        kernel = np.moveaxis(np.moveaxis(kernel, 0, 2), (4, 3), (0, 1))
        layer.weight.data = torch.from_numpy(kernel.copy())
        layer.bias.data = torch.from_numpy(bias)

    image = random_image(shape)
    expected = keras_probabilities(keras, model, image)
    assert expected.std() > 0.05  # else any network would agree
    # 1e-5: float32, whose sums of up to 6912 products come in another order.
    np.testing.assert_allclose(our_probabilities(network, image), expected, rtol=0, atol=1e-5)


def test_the_article_and_we_count_the_same_parameters(keras: ModuleType) -> None:
    model = create_unet(keras, num_layers=4, num_neurons=16, input_shape=(144, 224, 224, 4))
    assert model.count_params() == sum(p.numel() for p in UNet3D().parameters())


# ---- Files that Keras 3 itself writes -----------------------------------------------------------


@asks_keras
@pytest.mark.parametrize("file_name", ["model2.h5", "model2.weights.h5"])
def test_a_file_saved_by_keras_gives_the_same_outputs(
    keras: ModuleType, tmp_path: Path, file_name: str
) -> None:
    model = article_model(keras)
    path = tmp_path / file_name
    if file_name.endswith(".weights.h5"):
        model.save_weights(path)
    else:
        model.save(path)
    network = UNet3D()
    load_keras_weights(path, network)
    image = random_image((16, 24, 8))
    expected = keras_probabilities(keras, model, image)
    # 1e-5: see above.
    np.testing.assert_allclose(our_probabilities(network, image), expected, rtol=0, atol=1e-5)


@asks_keras
def test_the_moments_of_a_trained_model_are_not_taken_for_weights(
    keras: ModuleType, tmp_path: Path
) -> None:
    model = article_model(keras, num_layers=2, num_neurons=2)
    model.compile("adam", "categorical_crossentropy")
    image = random_image((4, 4, 4)).transpose(0, 4, 2, 3, 1)
    model.train_on_batch(image, np.full((1, 4, 4, 4, 4), 0.25))
    model.save(tmp_path / "model2.h5")
    with h5py.File(tmp_path / "model2.h5") as file:
        moments: list[str] = []
        file["optimizer_weights"].visititems(
            lambda name, item: moments.append(name) if getattr(item, "ndim", 0) == 5 else None
        )
    assert len(moments) == 18  # two for each of nine kernels: the trap is really there
    network = UNet3D(**TINY)
    load_keras_weights(tmp_path / "model2.h5", network)
    theirs = [layer.get_weights() for layer in model.layers if layer.weights]
    assert_weights(network, [(kernel, bias) for kernel, bias in theirs])


# ---- Files written by hand, as other versions of Keras write them -------------------------------


def keras_shapes(network: nn.Module) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    return [
        (tuple(layer.weight.permute(4, 2, 3, 1, 0).shape), (layer.out_channels,))
        for layer in network.modules()
        if isinstance(layer, nn.Conv3d)
    ]


def arrays_for(**settings: Any) -> Arrays:
    return random_arrays(keras_shapes(UNet3D(**settings)))


def write_keras2_model(
    path: Path, arrays: Arrays, *, first: int = 7, top: str = "model_weights"
) -> None:
    """Write the weights as `model.save` of Keras 2 does, the first layer being conv3d_<first>."""
    names = [f"conv3d_{first + index}" for index in range(len(arrays))]
    with h5py.File(path, "w") as file:
        root = file.require_group(top)
        # The order of dropout and the others is kept among them; they have no weights.
        root.attrs["layer_names"] = np.array(["input_1", *names, "dropout_9"], dtype="S")
        root.create_group("dropout_9").attrs["weight_names"] = np.array([], dtype="S")
        for name, (kernel, bias) in zip(names, arrays, strict=True):
            root[f"{name}/{name}/kernel:0"] = kernel
            root[f"{name}/{name}/bias:0"] = bias


def write_keras3_weights(path: Path, arrays: Arrays, *, names: Sequence[str]) -> None:
    """Write the weights as `model.save_weights` of Keras 3 does, layers called `names`."""
    with h5py.File(path, "w") as file:
        for name, (kernel, bias) in zip(names, arrays, strict=True):
            file[f"layers/{name}/vars/0"] = kernel
            file[f"layers/{name}/vars/1"] = bias


def assert_weights(network: nn.Module, arrays: Arrays) -> None:
    """Exactly: copying numbers rounds nothing."""
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv3d)]
    for layer, (kernel, bias) in zip(layers, arrays, strict=True):
        assert torch.equal(layer.weight, torch.from_numpy(to_torch_kernel(kernel)))
        assert torch.equal(layer.bias, torch.from_numpy(bias))


def test_the_axes_of_a_kernel_are_permuted() -> None:
    kernel = np.arange(2 * 3 * 4 * 5 * 6, dtype=np.float32).reshape(2, 3, 4, 5, 6)
    ours = to_torch_kernel(kernel)
    assert ours.shape == (6, 5, 3, 4, 2)
    z, x, y, channel_in, channel_out = 1, 2, 3, 4, 5
    assert ours[channel_out, channel_in, x, y, z] == kernel[z, x, y, channel_in, channel_out]


@pytest.mark.parametrize("top", ["model_weights", "/"])
def test_keras_2_files_whose_layer_numbers_start_anywhere(tmp_path: Path, top: str) -> None:
    arrays = arrays_for(**TINY)
    # conv3d_7 ... conv3d_15: sorted as text, conv3d_10 would come first.
    write_keras2_model(tmp_path / "model2.h5", arrays, first=7, top=top)
    network = UNet3D(**TINY)
    load_keras_weights(tmp_path / "model2.h5", network)
    assert_weights(network, arrays)


def test_the_files_own_layer_order_counts_more_than_the_numbers(tmp_path: Path) -> None:
    arrays = arrays_for(**TINY)
    write_keras2_model(tmp_path / "model2.h5", arrays[::-1])
    with h5py.File(tmp_path / "model2.h5", "r+") as file:
        attributes = file["model_weights"].attrs
        attributes["layer_names"] = attributes["layer_names"][::-1]
    network = UNet3D(**TINY)
    load_keras_weights(tmp_path / "model2.h5", network)
    assert_weights(network, arrays)


@pytest.mark.parametrize(
    "names",
    [
        ["conv3d", *(f"conv3d_{number}" for number in range(1, 9))],
        [f"conv3d_{number}" for number in range(19, 28)],
        [f"conv3d_{number}" for number in range(5, 14)],
    ],
)
def test_without_layer_names_the_number_gives_the_order(tmp_path: Path, names: list[str]) -> None:
    arrays = arrays_for(**TINY)
    write_keras3_weights(tmp_path / "model2.weights.h5", arrays, names=names)
    network = UNet3D(**TINY)
    load_keras_weights(tmp_path / "model2.weights.h5", network)
    assert_weights(network, arrays)


def test_half_precision_is_widened(tmp_path: Path) -> None:
    arrays = [(k.astype(np.float16), b.astype(np.float16)) for k, b in arrays_for(**TINY)]
    write_keras2_model(tmp_path / "model2.h5", arrays)
    network = UNet3D(**TINY)
    load_keras_weights(tmp_path / "model2.h5", network)
    assert_weights(network, [(k.astype(np.float32), b.astype(np.float32)) for k, b in arrays])


# ---- Files and networks that do not fit ---------------------------------------------------------


def assert_refused(path: Path, network: nn.Module, *, match: str) -> None:
    """The error names the file and says `match`, and the network keeps its weights."""
    before = [parameter.clone() for parameter in network.parameters()]
    with pytest.raises(SettingsError, match=match) as caught:
        load_keras_weights(path, network)
    assert str(path) in str(caught.value)
    assert all(map(torch.equal, before, network.parameters()))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"num_levels": 3, "num_filters": 2},
            "expected 9 convolutions; found 13.*has num_levels=3, num_filters=2, kernel_size=3, "
            "4 input and 4 output channels: build the network with these",
        ),
        (
            {"num_levels": 2, "num_filters": 3},
            r"convolution 1 of 9 to have a kernel \(Z, X, Y, in, out\) of \(3, 3, 3, 4, 2\) and a "
            r"bias of \(2,\); found \(3, 3, 3, 4, 3\) and \(3,\).*num_filters=3",
        ),
        (
            TINY | {"kernel_size": 5},
            r"\(3, 3, 3, 4, 2\).*found \(5, 5, 5, 4, 2\).*kernel_size=5",
        ),
        (
            TINY | {"out_channels": 3},
            r"convolution 9 of 9.*\(1, 1, 1, 2, 4\).*found \(1, 1, 1, 2, 3\).*3 output channels",
        ),
    ],
)
def test_a_model_of_other_settings_is_refused(
    tmp_path: Path, settings: dict[str, Any], text: str
) -> None:
    write_keras2_model(tmp_path / "model2.h5", arrays_for(**settings))
    assert_refused(tmp_path / "model2.h5", UNet3D(**TINY), match=text)


@pytest.mark.parametrize("num_layers", [0, 8])
def test_a_model_that_is_no_unet_is_refused(tmp_path: Path, num_layers: int) -> None:
    write_keras2_model(tmp_path / "model2.h5", arrays_for(**TINY)[:num_layers])
    text = f"expected 9 convolutions; found {num_layers}.*not a model of the article's create_unet"
    assert_refused(tmp_path / "model2.h5", UNet3D(**TINY), match=text)


def test_a_convolution_without_bias_is_refused(tmp_path: Path) -> None:
    write_keras2_model(tmp_path / "model2.h5", arrays_for(**TINY))
    with h5py.File(tmp_path / "model2.h5", "r+") as file:
        del file["model_weights/conv3d_8/conv3d_8/bias:0"]
    assert_refused(tmp_path / "model2.h5", UNet3D(**TINY), match="convolution 2 .*and no bias")


def test_layers_whose_names_tell_no_order_are_refused(tmp_path: Path) -> None:
    names = ["first_layer", *(f"conv3d_{number}" for number in range(8))]
    write_keras3_weights(tmp_path / "model2.weights.h5", arrays_for(**TINY), names=names)
    text = "found conv3d, first_layer, which tell no order.*with model.save"
    assert_refused(tmp_path / "model2.weights.h5", UNet3D(**TINY), match=text)


def test_a_convolution_missing_from_layer_names_is_refused(tmp_path: Path) -> None:
    write_keras2_model(tmp_path / "model2.h5", arrays_for(**TINY))
    with h5py.File(tmp_path / "model2.h5", "r+") as file:
        file["model_weights"].attrs["layer_names"] = np.array(["conv3d_7"], dtype="S")
    assert_refused(tmp_path / "model2.h5", UNet3D(**TINY), match="cannot be read as such.*conv3d_")


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, number: float) -> None:
    arrays = arrays_for(**TINY)
    arrays[3][1][0] = number
    write_keras2_model(tmp_path / "model2.h5", arrays)
    text = "conv3d_10/bias:0: expected finite numbers; found NaN or infinity"
    assert_refused(tmp_path / "model2.h5", UNet3D(**TINY), match=text)


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    arrays = [(k.astype(np.int8), b) for k, b in arrays_for(**TINY)]
    write_keras2_model(tmp_path / "model2.h5", arrays)
    text = "kernel:0: expected floating-point numbers; found int8"
    assert_refused(tmp_path / "model2.h5", UNet3D(**TINY), match=text)


def test_a_link_to_another_file_is_not_followed(tmp_path: Path) -> None:
    for name in ("model2.h5", "other.h5"):
        write_keras2_model(tmp_path / name, arrays_for(**TINY))
    with h5py.File(tmp_path / "model2.h5", "r+") as file:
        layer = "model_weights/conv3d_7"
        del file[layer]
        file[layer] = h5py.ExternalLink("other.h5", layer)
    text = "expected 9 convolutions; found 8"
    assert_refused(tmp_path / "model2.h5", UNet3D(**TINY), match=text)


def test_what_is_neither_a_group_nor_a_dataset_is_passed_over(tmp_path: Path) -> None:
    arrays = arrays_for(**TINY)
    write_keras2_model(tmp_path / "model2.h5", arrays)
    with h5py.File(tmp_path / "model2.h5", "r+") as file:
        file["model_weights/a_named_type"] = np.dtype("f4")
    network = UNet3D(**TINY)
    load_keras_weights(tmp_path / "model2.h5", network)
    assert_weights(network, arrays)


@pytest.mark.parametrize("kind", ["external", "virtual"])
def test_numbers_that_lie_in_another_file_are_refused(tmp_path: Path, kind: str) -> None:
    path, name, shape = tmp_path / "model2.h5", "model_weights/conv3d_7/conv3d_7/bias:0", (2,)
    write_keras2_model(path, arrays_for(**TINY))
    with h5py.File(path, "r+") as file:
        del file[name]
        if kind == "external":
            file.create_dataset(name, shape, dtype="f4", external=str(tmp_path / "secret"))
        else:
            layout = h5py.VirtualLayout(shape, dtype="f4")
            layout[:] = h5py.VirtualSource("secret.h5", "data", shape)
            file.create_virtual_dataset(name, layout)
    assert_refused(path, UNet3D(**TINY), match="expected numbers inside the file; found a refer")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert_refused(tmp_path / "absent.h5", UNet3D(**TINY), match=r"cannot be read.*Check the path")


@pytest.mark.parametrize("damage", ["text", "empty", "truncated", "folder"])
def test_a_file_that_is_no_whole_hdf5_file_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "model2.h5"
    write_keras2_model(path, arrays_for(**TINY))
    if damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        whole = path.read_bytes()
        damaged = {"text": b"epoch,loss\n", "empty": b"", "truncated": whole[: len(whole) // 2]}
        path.write_bytes(damaged[damage])
    assert_refused(path, UNet3D(**TINY), match="expected a Keras HDF5 file.*cannot be read as such")


@pytest.mark.parametrize(
    ("network", "found"),
    [
        (lambda: UNet3D(**TINY, norm="instance"), "found UNet3D with norm='instance'"),
        (
            lambda: build_network("DynUNet", in_channels=4, out_channels=4, filters=[2, 2, 2]),
            r"found DynUNet\. Choose",
        ),
    ],
)
def test_only_the_articles_network_can_take_keras_weights(
    tmp_path: Path, network: Any, found: str
) -> None:
    text = f"expected a UNet3D with norm=None to put Keras weights into; {found}"
    assert_refused(tmp_path / "model2.h5", network(), match=text)
