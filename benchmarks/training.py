"""C9: one step of training, against the same step in eager PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measure import Comparison, compare
from benchmarks.network import MEMORY, as_kept, by_default, same_weights
from networks.layout import memory_format_of
from pipeline.model.precision import Forward, half_precision
from pipeline.training.losses import build_loss
from pipeline.training.needs import predict_needs
from pipeline.training.schedule import build_optimisation

GOAL = 1 / 1.7
SIZE = (72, 112, 80)
SIZE_OF_CHECK = (40, 56, 40)
NUM_STEPS = 20
TOLERANCE = 1e-4
LEARNING_RATE, EPSILON = 1e-3, 1e-7
CPU = torch.device("cpu")

Step = Callable[[], float]


def run(*, repeats: int) -> list[Comparison]:
    """Compare the time of a step without dropout, and with the article's."""
    agreement = _same_losses()
    comparisons = []
    for dropout, goal in ((0.0, GOAL), (0.25, None)):
        reference, ours, needed_bytes = _steps(SIZE, dropout=dropout)
        comparisons.append(
            compare(
                "C9",
                f"training step with dropout {dropout:g}",
                reference=("eager PyTorch", by_default(reference)),
                ours=("ours", as_kept(ours, needed_bytes)),
                same=lambda _, __: agreement,
                goal=goal,
                data="random intensities, 4 x 72 x 112 x 80, the article's network, batch 1: "
                "forward, cross-entropy, backward, Adam",
                repeats=repeats,
                notes=(f"{torch.get_num_threads()} threads on both sides, float32", MEMORY),
            )
        )
    return comparisons


def _same_losses() -> str:
    """Train both for some steps on the same volume; without dropout, whose masks lie elsewhere."""
    reference, ours, _ = _steps(SIZE_OF_CHECK, dropout=0.0)
    losses = [(reference(), ours()) for _ in range(NUM_STEPS)]
    difference = max(abs(one - other) for one, other in losses)
    assert difference <= TOLERANCE, losses
    assert losses[-1][0] < losses[0][0] - 0.05, losses  # something was learned
    return (
        f"without dropout, {NUM_STEPS} losses from one seed, from {losses[0][1]:.3f} to "
        f"{losses[-1][1]:.3f}, differ by at most {difference:.1e} (4 x 40 x 56 x 40 voxels)"
    )


def _steps(size: tuple[int, ...], *, dropout: float) -> tuple[Step, Step, int]:
    """Return a step of each side, from the same weights, and the bytes that ours needs."""
    image = torch.randn((1, 4, *size), generator=torch.Generator().manual_seed(1))
    # Classes that can be learned: how bright the mean of the modalities is.
    edges = torch.tensor([-0.5, 0.0, 0.5])
    label = torch.bucketize(image.mean(dim=1, keepdim=True), edges)
    eager, network = same_weights(0, dropout=dropout)
    needs = predict_needs(network, image_shape=image.shape)
    return (
        _eager_step(eager, image, label),
        _our_step(network, image, label),
        needs.new_step_bytes,
    )


def _eager_step(network: nn.Module, image: Tensor, label: Tensor) -> Step:
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, eps=EPSILON)
    network.train()

    def step() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(network(image), label[:, 0])
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def _our_step(network: nn.Module, image: Tensor, label: Tensor) -> Step:
    """Return what the trainer does in an iteration."""
    layout = memory_format_of(network, CPU)
    network.to(memory_format=layout)  # type: ignore[call-overload]
    optimizer, _ = build_optimisation(
        network,
        epoch_length=NUM_STEPS,
        max_epochs=1,
        learning_rate=LEARNING_RATE,
        adam_epsilon=EPSILON,
        weight_decay=0.0,
        accumulation_steps=1,
        schedule="constant",
        warmup_fraction=0.0,
    )
    forward, loss_of = Forward(half_precision(CPU, amp=True)), build_loss("cross_entropy")
    network.train()

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss: Tensor = loss_of(forward(image, network), label)  # type: ignore[arg-type]  # no list
        loss.backward()
        optimizer.step()
        return loss.item()

    return step
