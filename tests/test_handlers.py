"""The trainer's handlers, on a real trainer around a network of one weight or one convolution."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, MetaTensor

from pipeline.data.loaders import training_loader
from pipeline.errors import NumericalError
from pipeline.signals import StopRequest
from pipeline.training.engines import build_trainer
from pipeline.training.handlers import (
    LossWatch,
    OptimiserStep,
    Position,
    ProgressBar,
    StopWatch,
    steps_now,
)
from pipeline.training.losses import build_loss
from pipeline.training.progress import Progress
from pipeline.training.schedule import build_scheduler

CPU = torch.device("cpu")
# A sum of a few float32 products in another order.
FLOAT32 = 1e-6


class Unchanged:
    """An augmentation that changes nothing."""

    def __call__(self, item: dict[str, Any], /) -> dict[str, Any]:
        return item

    def set_random_state(self, seed: int) -> None:
        pass


def make_cases(num_cases: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "image": MetaTensor(torch.randn(1, 4, 4, 4, generator=generator)),
            "label": MetaTensor(torch.randint(0, 2, (1, 4, 4, 4), generator=generator)),
            "case": f"case_{index}",
        }
        for index in range(num_cases)
    ]


class Training:
    """A trainer over `num_cases` cases with plain gradient descent at a rate of 1."""

    def __init__(
        self,
        *,
        num_cases: int = 4,
        cases: list[dict[str, Any]] | None = None,
        batch_size: int = 1,
        accumulation_steps: int = 1,
        gradient_clip: float | None = None,
        dropout: float = 0.0,
        loss: Any = None,
    ) -> None:
        torch.manual_seed(0)
        self.network = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 1), torch.nn.Dropout(dropout))
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=1.0)
        loader, self.sampler = training_loader(
            cases or make_cases(num_cases),
            augmentation=Unchanged(),
            seed=3,
            batch_size=batch_size,
            num_workers=0,
        )
        self.scheduler = build_scheduler(
            self.optimizer, schedule="constant", num_steps=8, warmup_fraction=0.0
        )
        self.progress = Progress()
        self.trainer = build_trainer(
            self.network,
            loader=loader,
            optimizer=self.optimizer,
            loss=loss or build_loss("cross_entropy"),
            device=CPU,
            max_epochs=2,
            amp=True,  # without effect on the CPU
            accumulation_steps=accumulation_steps,
            handlers=[
                Position(self.sampler, seed=3, batch_size=batch_size),
                OptimiserStep(self.scheduler, gradient_clip=gradient_clip),
                LossWatch(self.progress),
            ],
        )

    def weights(self) -> torch.Tensor:
        """Return a copy of all weights in one vector."""
        return torch.nn.utils.parameters_to_vector(self.network.parameters()).detach().clone()

    def record(self, what: Any) -> list[Any]:
        """Return the list to which `what()` is added after each iteration."""
        values: list[Any] = []
        self.trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda _: values.append(what()))
        return values


# ---- Engines ------------------------------------------------------------------------------------


def test_the_network_gets_plain_tensors() -> None:
    kinds = set()
    training = Training()
    training.network.register_forward_pre_hook(lambda _, inputs: kinds.add(type(inputs[0])))
    training.trainer.run()
    assert kinds == {torch.Tensor}
    assert training.trainer.scaler is None


def test_errors_are_not_printed_before_they_are_raised(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object) -> torch.Tensor:
        raise RuntimeError("the loss failed")

    with pytest.raises(RuntimeError, match="the loss failed"):
        Training(loss=fail).trainer.run()
    assert capsys.readouterr().err == ""


# ---- Position -----------------------------------------------------------------------------------


def names_of(training: Training) -> list[str]:
    return training.record(lambda: training.trainer.state.batch["case"][0])


def test_every_epoch_has_its_own_order() -> None:
    training = Training()
    names = names_of(training)
    training.trainer.run()
    expected = []
    for epoch in (1, 2):
        training.sampler.start(epoch=epoch)
        expected += [f"case_{index}" for _, index in training.sampler]
    assert names == expected
    assert names[:4] != names[4:]


@pytest.mark.parametrize("iteration", [1, 3, 4, 5])
def test_a_trainer_set_to_an_iteration_goes_on_with_the_next_case(iteration: int) -> None:
    whole, rest = Training(), Training()
    names, remaining = names_of(whole), names_of(rest)
    whole.trainer.run()
    rest.trainer.state.iteration = iteration
    rest.trainer.state.epoch = iteration // 4
    rest.trainer.run()
    assert remaining == names[iteration:]


def test_what_is_done_counts_in_samples_not_in_batches() -> None:
    training = Training(batch_size=2)
    names = training.record(lambda: list(training.trainer.state.batch["case"]))
    training.trainer.state.iteration = 1
    training.trainer.state.epoch = 0
    training.trainer.run()
    training.sampler.start(epoch=1, num_done=2)
    assert names[0] == [f"case_{index}" for _, index in training.sampler]


def test_dropout_follows_from_the_iteration() -> None:
    def draws(disturbance: int) -> list[float]:
        training = Training(dropout=0.5)
        numbers = training.record(lambda: float(torch.rand(1)))
        torch.manual_seed(disturbance)
        training.trainer.run()
        return numbers

    assert draws(1) == draws(2)
    assert len(set(draws(1))) == 8


# ---- LossWatch ----------------------------------------------------------------------------------


def test_the_losses_of_an_epoch_are_added_up() -> None:
    training = Training()
    losses = training.record(lambda: training.trainer.state.output["loss"].item())
    training.trainer.run()
    assert training.progress.iteration == 8
    assert training.progress.epoch_loss_sum == sum(losses)


def poisoned(num_cases: int = 2) -> tuple[list[dict[str, Any]], str]:
    """Return cases of which one has a NaN, and its name."""
    cases = make_cases(num_cases)
    cases[1]["image"][0, 0, 0, 0] = math.nan
    return cases, cases[1]["case"]


def test_a_loss_that_is_no_number_stops_before_the_weights_change() -> None:
    cases, name = poisoned()
    training = Training(cases=cases)
    weights = [training.weights()]
    training.trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda _: weights.append(training.weights())
    )
    with pytest.raises(NumericalError, match=rf"the loss is nan for the case\(s\) {name}\."):
        training.trainer.run()
    assert torch.isfinite(training.weights()).all()
    assert torch.equal(training.weights(), weights[-1])
    # What the checkpoints say is what was done: the iteration before.
    assert training.progress.iteration == len(weights) - 1
    assert math.isfinite(training.progress.epoch_loss_sum)


def test_all_cases_of_the_batch_are_named() -> None:
    cases, _ = poisoned()
    with pytest.raises(NumericalError, match=r"iteration 1: .* (case_0, case_1|case_1, case_0)\."):
        Training(cases=cases, batch_size=2).trainer.run()


def test_an_infinite_loss_stops_too() -> None:
    def loss(logits: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return logits.sum() + math.inf

    with pytest.raises(NumericalError, match=r"the loss is inf .* lower training.learning_rate"):
        Training(loss=loss).trainer.run()


# ---- OptimiserStep ------------------------------------------------------------------------------


def infinite_slope(logits: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """Return 0, whose gradient is infinite or no number."""
    return (logits * 0).abs().sqrt().sum()


def test_a_gradient_that_is_no_number_stops_before_the_weights_change() -> None:
    training = Training(loss=infinite_slope)
    before = training.weights()
    message = r"iteration 1: the norm of the gradients is (nan|inf) for the case\(s\) case_\d\."
    with pytest.raises(NumericalError, match=message):
        training.trainer.run()
    assert torch.equal(training.weights(), before)
    assert training.progress.iteration == 0


def steep(logits: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return 1000.0 * logits.mean()


def first_step(**options: Any) -> torch.Tensor:
    """Return by how much the weights changed in the first iteration."""
    training = Training(num_cases=1, **options)
    before = training.weights()
    after = training.record(training.weights)
    training.trainer.run()
    return after[0] - before


def test_the_gradient_is_clipped_to_the_norm() -> None:
    free, clipped = first_step(loss=steep), first_step(loss=steep, gradient_clip=0.5)
    assert free.norm() > 500
    # torch divides by the norm plus 1e-6; weights of about 1 keep seven digits.
    assert float(clipped.norm()) == pytest.approx(0.5, abs=1e-5)
    assert torch.allclose(clipped / clipped.norm(), free / free.norm(), atol=1e-5)


def test_a_gradient_below_the_norm_is_left_alone() -> None:
    assert torch.equal(first_step(gradient_clip=1e6), first_step())


def test_the_rate_moves_with_the_optimiser_steps() -> None:
    training = Training(num_cases=3, accumulation_steps=2)
    training.trainer.run()
    # Two epochs of three batches: a step after the second, and one at the end with what is left.
    assert training.scheduler.last_epoch == 4


def test_two_accumulated_batches_change_the_weights_together() -> None:
    training = Training(accumulation_steps=2)
    before = training.weights()
    after = training.record(training.weights)
    training.trainer.run()
    changed = [not torch.equal(old, new) for old, new in zip([before, *after], after, strict=False)]
    assert changed == [False, True] * 4


def test_two_accumulated_batches_equal_one_batch_of_two() -> None:
    def run(**options: Any) -> torch.Tensor:
        training = Training(num_cases=4, **options)
        training.trainer.run()
        return training.weights()

    accumulated, whole = run(accumulation_steps=2), run(batch_size=2)
    assert torch.allclose(accumulated, whole, atol=FLOAT32, rtol=0)
    # And the batches do matter: one step a case ends elsewhere.
    assert not torch.allclose(run(), whole, atol=1e-3, rtol=0)


def test_accumulated_gradients_are_clipped_only_when_complete() -> None:
    training = Training(num_cases=2, accumulation_steps=2, gradient_clip=0.5, loss=steep)
    norms = training.record(
        lambda: float(
            torch.nn.utils.get_total_norm(
                [p.grad for p in training.network.parameters() if p.grad is not None]
            )
        )
    )
    training.trainer.run()
    assert norms[0] > 100
    assert norms[1] == pytest.approx(0.5, abs=1e-5)  # see above


@pytest.mark.parametrize(
    ("accumulation_steps", "expected"),
    [(1, [True] * 10), (2, [False, True, False, True, True] * 2), (7, [*[False] * 4, True] * 2)],
)
def test_steps_now_is_monais_rule(accumulation_steps: int, expected: list[bool]) -> None:
    training = Training(num_cases=5, accumulation_steps=accumulation_steps)
    before = [training.weights()]
    stepped = training.record(lambda: not torch.equal(training.weights(), before[0]))
    training.trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda _: before.__setitem__(0, training.weights())
    )
    said = training.record(lambda: steps_now(training.trainer))
    training.trainer.run()
    assert said == stepped == expected


class NotedScaler(torch.amp.GradScaler):
    """A scaler that works on the CPU and notes that the gradients were unscaled in time."""

    def __init__(self) -> None:
        super().__init__("cpu", init_scale=1024.0)
        self.num_unscaled = 0

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        self.num_unscaled += 1
        super().unscale_(optimizer)


def scaled(training: Training) -> NotedScaler:
    """Let `training` run as it does under mixed precision, but on the CPU."""
    scaler = NotedScaler()
    training.trainer.amp = True
    training.trainer.scaler = scaler  # type: ignore[assignment]  # as in `build_trainer`
    return scaler


# torch.autocast("cuda") on a machine without one says that it does nothing.
@pytest.mark.filterwarnings("ignore:.*CUDA is not available:UserWarning")
def test_scaled_gradients_are_clipped_at_their_own_size() -> None:
    plain, training = Training(gradient_clip=0.1), Training(gradient_clip=0.1)
    scaler = scaled(training)
    plain.trainer.run()
    training.trainer.run()
    assert training.trainer.scaler is scaler  # also where it came from a checkpoint
    assert scaler.num_unscaled == 8
    # The scale is a power of two: dividing it out again changes no bit.
    assert torch.equal(training.weights(), plain.weights())


@pytest.mark.filterwarnings(
    "ignore:.*CUDA is not available:UserWarning",
    # The scaler skips the step, after which torch wonders about the scheduler's.
    "ignore:Detected call of `lr_scheduler.step:UserWarning",
)
def test_a_scaler_skips_what_is_no_number() -> None:
    training = Training(num_cases=1, loss=infinite_slope)
    scaler = scaled(training)
    before = training.weights()
    training.trainer.run()
    assert torch.equal(training.weights(), before)
    assert scaler.get_scale() == 1024.0 / 4  # halved twice, once an iteration


# ---- StopWatch and ProgressBar ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "last"),
    [
        (Events.ITERATION_COMPLETED(once=2), 2),
        (Events.ITERATION_STARTED(once=3), 3),
        # During the validation at the end of the first epoch: the second does not begin.
        (Events.EPOCH_COMPLETED(once=1), 4),
    ],
)
def test_a_stop_comes_after_the_iteration(event: Any, last: int) -> None:
    training, stop = Training(), StopRequest()
    training.trainer.add_event_handler(event, lambda _: setattr(stop, "signal_name", "SIGTERM"))
    StopWatch(stop).attach(training.trainer)
    training.trainer.run()
    assert training.progress.iteration == last


def test_without_a_signal_nothing_stops() -> None:
    training = Training()
    StopWatch(StopRequest()).attach(training.trainer)
    training.trainer.run()
    assert training.progress.iteration == 8


def test_the_bar_counts_from_where_the_run_is_resumed(capsys: pytest.CaptureFixture[str]) -> None:
    training = Training()
    bar = ProgressBar(num_iterations=8, first_iteration=4)
    bar.attach(training.trainer)
    training.trainer.state.iteration, training.trainer.state.epoch = 4, 1
    training.trainer.run()
    bar.close()
    assert bar.bar.n == 8
    last = capsys.readouterr().err.split("\r")[-1]
    assert "8/8" in last
    assert "epoch=2/2" in last
    assert f"loss={training.trainer.state.output['loss'].item():.4f}" in last


def test_a_loader_of_plain_tensors_serves_as_well() -> None:
    cases = [
        {key: torch.as_tensor(case[key]) for key in ("image", "label")} for case in make_cases(2)
    ]
    network = torch.nn.Conv3d(1, 2, 1)
    trainer = build_trainer(
        network,
        loader=DataLoader(cases, batch_size=2),  # type: ignore[arg-type]  # a list serves as well
        optimizer=torch.optim.SGD(network.parameters(), lr=1.0),
        loss=build_loss("dice_ce"),
        device=CPU,
        max_epochs=1,
        amp=False,
        accumulation_steps=1,
        handlers=[],
    )
    trainer.run()
    assert math.isfinite(trainer.state.output["loss"].item())
