"""The loop itself: it learns, accumulates, and stops where numbers end."""

from contextlib import suppress

import numpy as np
import pytest
import torch

from medseg_brn.cases.cache import PreparedCase
from medseg_brn.cases.targets import Targets
from medseg_brn.config import Experiment, NetworkConfig, PatchesConfig, TrainingConfig
from medseg_brn.errors import DataError, DivergenceError, TrainingError
from medseg_brn.networks.batch_renorm import BatchRenorm
from medseg_brn.patches.stream import PatchBatch, PatchStream
from medseg_brn.training.distributed import Processes
from medseg_brn.training.loop import make_loader, run_steps
from medseg_brn.training.losses import make_loss
from medseg_brn.training.state import make_state

CPU = torch.device("cpu")
TARGETS = Targets(("background", "structure"))
LOSS = make_loss(TARGETS)


def make_experiment(norm: str = "batch_renorm", **training) -> Experiment:
    return Experiment(
        patches=PatchesConfig(size=(8, 8, 8), augmentation=None, workers=0),
        network=NetworkConfig(channels=(4, 8), norm=norm, weight_standardization=False),
        training=TrainingConfig(**{"steps": 8, "batch_size": 2, "warmup_fraction": 0, **training}),
    )


def make_batches(count: int, size: int = 2, seed: int = 0) -> list[PatchBatch]:
    """Bright half against dark half."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        image = torch.randn(size, 1, 8, 8, 8, generator=generator)
        image[:, :, 4:] += 4
        batches.append(PatchBatch(image=image, label=(image > 2).long(), cases=["a", "b"]))
    return batches


def train(experiment: Experiment, batches: list[PatchBatch], last: int | None = None):
    """State and records after the experiment's steps, or after step `last` of them."""
    state = make_state(experiment, 1, 2, CPU)
    records = []

    def keep(record):
        records.append(record)
        if record.step == last:
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        run_steps(
            state,
            iter(batches),
            experiment,
            0,
            loss_function=LOSS,
            dtype=torch.float32,
            processes=Processes(),
            after_step=keep,
        )
    return state, records


def test_the_loss_falls():
    _, records = train(make_experiment(steps=25, learning_rate=0.1), make_batches(25))
    assert records[-1].loss < 0.5 * records[0].loss
    assert [record.step for record in records] == list(range(1, 26))


@pytest.mark.parametrize("norm", ["batch", "batch_renorm", "mabn"])
def test_statistics_are_left_alone_once_they_are_frozen(norm):
    batches = make_batches(8)
    frozen, _ = train(make_experiment(norm, steps=8, freeze_statistics_at=0.5), batches)
    half, _ = train(make_experiment(norm, steps=8, freeze_statistics_at=0.5), batches[:4], last=4)
    for name, value in frozen.network.state_dict().items():
        if "running" in name:
            assert torch.equal(value, half.network.state_dict()[name])
        elif name.endswith("conv.weight"):
            assert not torch.equal(value, half.network.state_dict()[name])


def test_a_step_is_announced_when_the_norms_are_ready_for_it():
    experiment = make_experiment(steps=4)
    state = make_state(experiment, 1, 2, CPU)
    counts = []
    layer = next(m for m in state.network.modules() if isinstance(m, BatchRenorm))
    run_steps(
        state,
        iter(make_batches(4)),
        experiment,
        0,
        loss_function=LOSS,
        dtype=torch.float32,
        processes=Processes(),
        before_step=lambda step: counts.append((step, int(layer.num_batches_tracked))),
    )
    assert counts == [(1, 0), (2, 1), (3, 2), (4, 3)]


def test_accumulated_gradients_are_those_of_the_whole_batch():
    # No norm, and the same patch twice, whose pooled Dice is its own: two halves make the whole.
    (half,) = make_batches(1, size=1)
    halves = [half, half]
    whole = PatchBatch(
        image=torch.cat([half["image"]] * 2), label=torch.cat([half["label"]] * 2), cases=["a", "a"]
    )
    one, _ = train(make_experiment("none", steps=1), [whole])
    two, _ = train(make_experiment("none", steps=1, accumulation=2, batch_size=1), halves)
    for name, value in one.network.state_dict().items():
        torch.testing.assert_close(two.network.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_the_renorm_schedule_counts_optimizer_steps():
    state, _ = train(make_experiment(steps=3, accumulation=2), make_batches(6))
    counted = {int(value) for name, value in state.network.state_dict().items() if name.endswith("tracked")}
    assert counted == {4}  # set to 2 before the last step, which had two passes


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_with_step_and_cases(poison):
    batches = make_batches(4)
    batches[2]["image"][0, 0, 0, 0, 0] = poison
    batches[2]["cases"] = ["patient7", "patient3"]
    with pytest.raises(TrainingError, match=r"at step 3 .*input patches .* 1 voxels of patient7\. Look at"):
        train(make_experiment(), batches)


def test_weights_that_the_step_before_spoilt_are_told():
    wild = make_experiment("none", learning_rate=1e38, weight_decay=1e6, gradient_clip=None)
    expected = (
        r"at step 2 .* came from a, b\. Before the step, the \w+ of \S+ \(\w+\) was not finite.*--resume"
    )
    with pytest.raises(TrainingError, match=expected):
        train(wild, make_batches(8))


def test_each_pass_is_shown_with_its_logits():
    seen = []
    experiment = make_experiment(steps=2, accumulation=2)
    state = make_state(experiment, 1, 2, CPU)
    batches = make_batches(4)
    run_steps(
        state,
        iter(batches),
        experiment,
        0,
        loss_function=LOSS,
        dtype=torch.float32,
        processes=Processes(),
        after_pass=lambda batch, logits, classes: seen.append((batch, logits.shape, classes)),
    )
    assert [batch is given for (batch, _, _), given in zip(seen, batches, strict=True)] == [True] * 4
    assert all(shape == (2, 2, 8, 8, 8) for _, shape, _ in seen)
    assert all(torch.equal(classes, batch["label"]) for batch, _, classes in seen)


def test_averaged_weights_follow_the_weights():
    state, _ = train(make_experiment(steps=8, ema_decay=0.5, learning_rate=0.1), make_batches(8))
    initial = make_state(make_experiment(), 1, 2, CPU).network.state_dict()
    for name, now in state.network.state_dict().items():
        if not now.is_floating_point():
            continue
        mean = state.best_network.state_dict()[name]
        assert not torch.equal(mean, now), name
        assert (mean - now).norm() < (initial[name] - now).norm(), name


def test_the_average_is_the_one_worked_out_by_hand():
    state = make_state(make_experiment(ema_decay=0.9), 1, 2, CPU)
    weight, mean = state.network.head.bias, state.best_network.head.bias
    seen = []
    for value in (1.0, 2.0, 4.0):
        torch.nn.init.constant_(weight, value)
        state.averaged.update_parameters(state.network)
        seen.append(mean[0].item())
    # the first value is taken as it is; then (1 + n) / (10 + n) of the old one is kept, n = 1, 2
    second = 2 / 11 * 1.0 + 9 / 11 * 2.0
    assert seen == pytest.approx([1.0, second, 3 / 12 * second + 9 / 12 * 4.0])


def test_an_unreadable_case_ends_the_stream_with_its_own_error(tmp_path):
    missing = PreparedCase("patient9", *[tmp_path / "patient9" / "gone.npy"] * 3, spacing_mm=(1, 1, 1))
    experiment = make_experiment()
    for workers in (0, 1):
        patches = experiment.patches.model_copy(update={"workers": workers})
        changed = experiment.model_copy(update={"patches": patches})
        batches = make_loader(PatchStream([missing], patches, 0, TARGETS), changed, 0, Processes())
        with pytest.raises(DataError, match="patient9"):
            next(batches)


def test_the_loader_starts_where_a_resumed_run_needs_it(tmp_path):
    paths = [tmp_path / name for name in ("image.npy", "label.npy", "foreground.npy")]
    image = np.random.default_rng(0).normal(size=(1, 9, 9, 9)).astype(np.float32)
    for path, array in zip(
        paths, (image, np.zeros((9, 9, 9), np.uint8), np.zeros((4, 0), np.int32)), strict=True
    ):
        np.save(path, array)
    experiment = make_experiment(steps=5, accumulation=2)
    stream = PatchStream([PreparedCase("a", *paths, spacing_mm=(1, 1, 1))], experiment.patches, 0, TARGETS)
    whole = [batch["image"] for batch in make_loader(stream, experiment, 0, Processes())]
    rest = [batch["image"] for batch in make_loader(stream, experiment, 3, Processes())]
    assert len(whole) == 10
    assert all(torch.equal(one, other) for one, other in zip(whole[6:], rest, strict=True))


@pytest.mark.parametrize("norm", ["batch_renorm", "batch"])
def test_a_step_that_spoils_the_statistics_is_stopped_and_its_cases_are_named(norm):
    """Its loss is finite: by the next step's, innocent cases would be accused."""
    batches = make_batches(8)
    batches[3]["image"][0] *= 1e21
    batches[3]["cases"] = ["guilty", "b"]
    with pytest.raises(DivergenceError, match=r"(?s)at step 4 are .*guilty.*1e\+21|at step 4 .*guilty"):
        train(make_experiment(norm), batches)
