"""The network without its Python code: TorchScript and ONNX, of any size that it can take."""

from __future__ import annotations

import importlib.util
import io
import logging
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import active_children, get_context
from typing import Any

import torch

from networks import build_network
from pipeline.errors import ResourceError, SettingsError

ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
EARLIEST = (1980, 1, 1, 0, 0, 0)  # what zip can say; the same for every export
# Sizes in divisors. All are at least 2: torch takes an axis of size 1 for one that never changes,
# and instance normalisation needs more than one voxel at the bottom.
TRACED, CHECKED = (2, 3, 4), (3, 2, 5)


def require_onnx() -> None:
    """Raise SettingsError where a package that ONNX needs is not installed."""
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise SettingsError(
            f"--onnx needs {', '.join(missing)}: install the extra, pip install '.[onnx]'"
        )


def converted(
    *, network: Mapping[str, Any], weights: bytes, formats: Sequence[str]
) -> dict[str, bytes]:
    """Return the network in the given formats, `torchscript` (model.ts) and `onnx` (model.onnx).

    The conversions run in a process of their own: TorchScript numbers its classes by what the
    process has seen before, so that elsewhere the same network would not give the same bytes twice.

    Args:
        network: arguments of `networks.build_network`.
        weights: model.pt.
        formats: keys of `CONVERTERS`.

    Raises:
        SettingsError: the network cannot be converted for all sizes, or a package is missing.
        ResourceError: a conversion was killed.
    """
    if "onnx" in formats:
        require_onnx()
    # In one order, since one conversion is what the next one's process has seen.
    chosen = [name for name in CONVERTERS if name in formats]
    if not chosen:
        return {}
    others = set(active_children())
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return {name: _convert(pool, name, dict(network), weights) for name in chosen}
        except KeyboardInterrupt:  # the pool would wait for the conversion to end
            for child in set(active_children()) - others:
                child.kill()
            raise


def _convert(pool: Executor, name: str, network: dict[str, Any], weights: bytes) -> bytes:
    try:
        return pool.submit(CONVERTERS[name], network, weights).result()
    except BrokenProcessPool as error:
        raise ResourceError(
            f"--{name}: the conversion was killed, probably for want of memory. Free some, or "
            f"leave the option out."
        ) from error
    except Exception as error:
        reason = " ".join(str(error).strip().splitlines()[:1])
        raise SettingsError(
            f"--{name}: {network['name']} cannot be converted: {type(error).__name__}: {reason}. "
            f"Leave the option out."
        ) from error


def to_torchscript(network: Mapping[str, Any], weights: bytes) -> bytes:
    """Trace the network, check the result on another size, and return it without source paths."""
    module = _build(network, weights)
    with torchscript_allowed(), torch.no_grad():
        traced = torch.jit.trace(module, _image(module, network, TRACED), check_trace=False)
        buffer = io.BytesIO()
        torch.jit.save(traced, buffer)
        content = _without_paths(buffer.getvalue())
        loaded = torch.jit.load(io.BytesIO(content))
        image = _image(module, network, CHECKED)
        torch.testing.assert_close(loaded(image), module(image), rtol=1e-4, atol=1e-4)
    return content


@contextmanager
def torchscript_allowed() -> Iterator[None]:
    """Let torch.jit be used without its warnings.

    torch 2.13 deprecates it in favour of torch.export, whose files (.pt2) are loaded with pickle
    and can run code; MONAI's tools take model.ts. The tracer warns that the network's own check of
    the size is left out of the file, which it has to be.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".torch\.jit\.\w+. is", DeprecationWarning)
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        yield


def to_onnx(network: Mapping[str, Any], weights: bytes) -> bytes:
    """Export the network with dynamic sizes, and return it checked, without source paths."""
    module = _build(network, weights)
    divisor = int(module.divisor)  # type: ignore[arg-type]  # torch declares tensors and modules
    sizes = {
        axis: divisor * torch.export.Dim(name) for axis, name in ((2, "x"), (3, "y"), (4, "z"))
    }
    # It speaks of operators of torchvision, which no network here has.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # torch.export asks its own tree library what that has deprecated.
        warnings.filterwarnings("ignore", r".isinstance\(treespec", FutureWarning)
        program = torch.onnx.export(
            module,
            (_image(module, network, TRACED),),
            dynamo=True,
            dynamic_shapes=(sizes,),
            input_names=["image"],
            output_names=["logits"],
            verbose=False,
        )
    model = program.model_proto  # type: ignore[union-attr]  # None for the older exporter only
    _forget_sources(model)
    import_module("onnx.checker").check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def _build(network: Mapping[str, Any], weights: bytes) -> torch.nn.Module:
    module = build_network(**network)
    module.load_state_dict(torch.load(io.BytesIO(weights), weights_only=True))
    return module.eval()


def _image(
    module: torch.nn.Module, network: Mapping[str, Any], multiples: tuple[int, ...]
) -> torch.Tensor:
    """Return an image (1, C, X, Y, Z) of so many divisors, the same each time."""
    size = [int(module.divisor) * number for number in multiples]  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    return torch.rand((1, network["in_channels"], *size), generator=generator)


def _without_paths(content: bytes) -> bytes:
    """Return a TorchScript file without its debugging parts, which hold this machine's paths.

    The id goes with them, a checksum over them; torch reads a file without either.
    """
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(result, "w") as new:
        for name in old.namelist():
            if not name.endswith((".debug_pkl", "serialization_id")):
                new.writestr(zipfile.ZipInfo(name, EARLIEST), old.read(name))
    return result.getvalue()


def _forget_sources(model: Any) -> None:
    """Remove from an ONNX model where each node came from: the exporter's stack traces."""
    graph = model.graph
    owners = (graph, *model.functions)
    nodes = [node for owner in owners for node in owner.node]
    values = (*graph.input, *graph.output, *graph.value_info, *graph.initializer)
    for part in (model, *owners, *nodes, *values):
        del part.metadata_props[:]


CONVERTERS: dict[str, Callable[[dict[str, Any], bytes], bytes]] = {
    "torchscript": to_torchscript,
    "onnx": to_onnx,
}
