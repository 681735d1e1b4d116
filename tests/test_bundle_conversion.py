"""TorchScript and ONNX: the same network, for any size, with no path of this machine in it."""

from __future__ import annotations

import importlib.util
import io
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from networks import build_network
from pipeline.bundle import conversion
from pipeline.bundle.conversion import converted, to_onnx, to_torchscript, torchscript_allowed
from pipeline.bundle.weights import weights_bytes
from pipeline.errors import ResourceError, SettingsError

SITES = (str(Path(__file__).parents[1]).encode(), str(Path(torch.__file__).parents[1]).encode())
NETWORK = {"name": "UNet3D", "in_channels": 2, "out_channels": 3, "num_levels": 2, "num_filters": 2}
SIZE = (10, 6, 14)  # neither the traced nor the checked one


def weights_of(network: dict[str, Any]) -> bytes:
    torch.manual_seed(0)
    return weights_bytes(build_network(**network).state_dict())


@pytest.fixture(scope="module")
def weights() -> bytes:
    return weights_of(NETWORK)


def expected(network: dict[str, Any], weights: bytes, image: torch.Tensor) -> torch.Tensor:
    module = build_network(**network).eval()
    module.load_state_dict(torch.load(io.BytesIO(weights), weights_only=True))
    with torch.no_grad():
        return module(image)


def test_torchscript_takes_any_size_and_names_no_path(weights: bytes) -> None:
    content = to_torchscript(NETWORK, weights)
    assert not any(site in content for site in SITES)
    image = torch.rand(3, 2, *SIZE)
    with torchscript_allowed(), torch.no_grad():
        logits = torch.jit.load(io.BytesIO(content))(image)
    # The same kernels on the same input.
    torch.testing.assert_close(logits, expected(NETWORK, weights, image), rtol=0, atol=1e-6)


def test_onnx_takes_any_size_and_names_no_path(weights: bytes) -> None:
    content = to_onnx(NETWORK, weights)
    assert not any(site in content for site in SITES)
    graph = onnx.load_from_string(content).graph
    (given,), (returned,) = graph.input, graph.output
    sizes = [axis.dim_param or axis.dim_value for axis in given.type.tensor_type.shape.dim]
    assert (given.name, returned.name, sizes) == ("image", "logits", [1, 2, "2*x", "2*y", "2*z"])
    image = torch.rand(1, 2, *SIZE)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": image.numpy()})
    # Another runtime adds in another order: float32 rounding over a few thousand products.
    np.testing.assert_allclose(logits, expected(NETWORK, weights, image), rtol=0, atol=1e-5)


def test_a_network_that_cannot_be_converted_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "ProcessPoolExecutor", InThisProcess)
    with pytest.raises(SettingsError, match="--torchscript: Nope cannot be converted: ValueError"):
        converted(network={**NETWORK, "name": "Nope"}, weights=b"", formats=["torchscript"])


def test_a_conversion_that_was_killed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(InThisProcess):
        def submit(self, *_: Any) -> Future[bytes]:
            raise BrokenProcessPool

    monkeypatch.setattr(conversion, "ProcessPoolExecutor", Killed)
    with pytest.raises(ResourceError, match="--onnx: the conversion was killed"):
        converted(network=NETWORK, weights=b"", formats=["onnx"])


def test_onnx_without_its_packages_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name)
    )
    with pytest.raises(SettingsError, match=r"--onnx needs onnxscript: .* '\.\[onnx\]'"):
        converted(network=NETWORK, weights=b"", formats=["onnx"])


class InThisProcess:
    """A pool that calls at once, without the seconds that a new process takes."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> InThisProcess:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, function: Any, *arguments: Any) -> Future[bytes]:
        future: Future[bytes] = Future()
        try:
            future.set_result(function(*arguments))
        except ValueError as error:
            future.set_exception(error)
        return future
