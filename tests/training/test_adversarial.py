"""The discriminator: its loss by hand, what it may see, what it may change, and runs with it."""

import math
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from medseg_brn.cases.targets import Region, Targets
from medseg_brn.config import AdversarialConfig, Experiment, NetworkConfig, PatchesConfig, TrainingConfig
from medseg_brn.errors import ConfigError, DivergenceError
from medseg_brn.networks.batch_renorm import BatchRenorm3d
from medseg_brn.patches.stream import PatchBatch
from medseg_brn.reports.step_records import StepRecord, read_metrics
from medseg_brn.training.adversarial import (
    PairMaker,
    compute_hinge_loss,
    make_adversary,
    make_discriminator,
)
from medseg_brn.training.checkpoint import load_checkpoint, save_checkpoint
from medseg_brn.training.distributed import Processes
from medseg_brn.training.loop import run_steps
from medseg_brn.training.losses import make_loss
from medseg_brn.training.recording import Recorder
from medseg_brn.training.state import TrainingState, check_network, make_state

CPU = torch.device("cpu")
TARGETS = Targets(("background", "structure"))
LOSS = make_loss(TARGETS)
SMALL = {"channels": 4, "layers": 1, "begin": 0.0}


def make_experiment(adversarial: dict | None, **training) -> Experiment:
    return Experiment(
        patches=PatchesConfig(size=(8, 8, 8), augmentation=None, workers=0),
        network=NetworkConfig(channels=(4, 8), weight_standardization=False),
        training=TrainingConfig(
            **{"steps": 6, "batch_size": 2, "warmup_fraction": 0, **training},
            adversarial=None if adversarial is None else AdversarialConfig(**{**SMALL, **adversarial}),
        ),
    )


def make_batches(count: int, seed: int = 0) -> list[PatchBatch]:
    """Bright half against dark half."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        image = torch.randn(2, 1, 8, 8, 8, generator=generator)
        image[:, :, 4:] += 2
        batches.append(PatchBatch(image=image, label=(image > 1).long(), cases=["a", "b"]))
    return batches


def make_full_state(experiment: Experiment) -> TrainingState:
    state = make_state(experiment, 1, 2, CPU)
    state.adversary = make_adversary(experiment, 1, TARGETS, CPU)
    return state


def train(experiment: Experiment, batches, state: TrainingState | None = None, first_step: int = 0):
    """State and records after the experiment's steps."""
    state = state or make_full_state(experiment)
    records = []
    run_steps(
        state,
        iter(batches),
        experiment,
        first_step,
        loss_function=LOSS,
        dtype=torch.float32,
        processes=Processes(),
        after_step=records.append,
    )
    return state, records


def equal(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return all(torch.equal(value, second[name]) for name, value in first.items())


def test_hinge_loss_by_hand():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    # real: 0, 0.5, 2; fake: 0, 1, 2
    assert float(compute_hinge_loss(real, fake)) == pytest.approx(2.5 / 3 + 3 / 3)
    assert float(compute_hinge_loss(torch.zeros(4), torch.zeros(5))) == 2.0


def test_a_pair_by_hand():
    image = torch.full((1, 1, 1, 1, 2), 5.0)
    logits = torch.tensor([[0.0, 0.0], [0.0, math.log(3)]]).reshape(1, 2, 1, 1, 2)
    classes = torch.tensor([1, 0]).reshape(1, 1, 1, 1, 2)
    real, fake = PairMaker(TARGETS, CPU).make(image, logits, classes)
    assert real.reshape(3, 2).tolist() == [[5, 5], [0, 1], [1, 0]]
    assert fake.reshape(3, 2).flatten().tolist() == pytest.approx([5, 5, 0.5, 0.25, 0.5, 0.75])


def test_a_pair_of_regions_that_overlap():
    targets = Targets(
        ("background", "core", "rim"), (Region("whole", (1, 2), 2), Region("core", (1,), 1)), ignore_class=3
    )
    classes = torch.tensor([0, 1, 2, 3]).reshape(1, 1, 1, 1, 4)
    real, fake = PairMaker(targets, CPU).make(torch.zeros(1, 1, 1, 1, 4), torch.zeros(1, 2, 1, 1, 4), classes)
    assert real.reshape(3, 4)[1:].tolist() == [[0, 1, 1, 0], [0, 1, 0, 0]]
    assert fake.reshape(3, 4)[1:].tolist() == [[0.5, 0.5, 0.5, 0], [0.5, 0.5, 0.5, 0]]


def test_ignored_voxels_have_no_influence():
    targets = Targets(("background", "structure"), ignore_class=2)
    experiment = make_experiment({"norm": "batch_renorm"})
    generator = torch.Generator().manual_seed(0)
    image, logits = (torch.randn(1, n, 8, 8, 8, generator=generator) for n in (1, 2))
    classes = torch.randint(0, 2, (1, 1, 8, 8, 8), generator=generator)
    classes[..., :3] = 2
    other = logits.clone()
    other[..., :3] += torch.randn(1, 2, 8, 8, 3, generator=generator)
    found = []
    for given_logits in (logits, other):
        adversary = make_adversary(experiment, 1, targets, CPU)
        adversary.start(0)
        leaf = given_logits.clone().requires_grad_()
        adversary.challenge(image, leaf, classes).backward()
        assert not leaf.grad[..., :3].any() and leaf.grad[..., 3:].any()
        gradients = [weight.grad for weight in adversary.discriminator.parameters()]
        found.append((leaf.grad, gradients, adversary.read_losses()))
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(*pair) for pair in zip(found[0][1], found[1][1], strict=True))
    assert found[0][2] == found[1][2]


@pytest.mark.parametrize("norm", ["batch_renorm", "batch", "group", "instance", "spectral", "none"])
@pytest.mark.parametrize("batches", ["mixed", "separate"])
def test_the_challenge_teaches_both_and_leaves_no_trace(norm, batches):
    """The network's pass must move nothing in the discriminator: it learns from its own passes alone."""
    experiment = make_experiment({"norm": norm, "batches": batches, "weight": 0.5})
    batch = make_batches(1)[0]
    logits = torch.randn(2, 2, 8, 8, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
    challenged, taught = (make_adversary(experiment, 1, TARGETS, CPU) for _ in range(2))
    for adversary in (challenged, taught):
        adversary.start(3)
    term = challenged.challenge(batch["image"], logits, batch["label"], 0.25)
    real, fake = PairMaker(TARGETS, CPU).make(batch["image"], logits.detach(), batch["label"])
    loss = taught.learn(real, fake, 0.25)
    term.backward()
    assert logits.grad.abs().max() > 0
    assert equal(challenged.discriminator, taught.discriminator)
    weights = [adversary.discriminator.parameters() for adversary in (challenged, taught)]
    assert all(torch.equal(one.grad, other.grad) for one, other in zip(*weights, strict=True))
    found = challenged.read_losses()
    assert found["discriminator_loss"] == float(loss)
    assert found["adversarial_loss"] == pytest.approx(2 * term.item())  # weight 0.5


def test_separate_passes_add_their_gradients():
    """Statistics move between the real and the fake pass; the first one's gradient must not feel it."""
    config = AdversarialConfig(**SMALL, batches="separate")
    experiment = make_experiment({"batches": "separate"})
    adversary = make_adversary(experiment, 1, TARGETS, CPU)
    naive = make_discriminator(config, 3)
    generator = torch.Generator().manual_seed(0)
    pairs = [torch.randn(1, 3, 8, 8, 8, generator=generator) for _ in range(4)]
    adversary.start(0)
    for batch in pairs[:2]:  # the first batch would set the statistics
        adversary.discriminator(batch)
    naive.load_state_dict(adversary.discriminator.state_dict())
    adversary.start(5)
    for layer in naive.modules():
        if isinstance(layer, BatchRenorm3d):
            layer.num_batches_tracked.fill_(5)
            layer.schedule = (1, 2, 2)  # round(0.1 · 6), round(0.4 · 6)
    adversary.learn(pairs[2], pairs[3])
    for sign, batch in ((1, pairs[2]), (-1, pairs[3])):
        (1 - sign * naive(batch)).clamp_min(0).mean().backward()
    for one, other in zip(adversary.discriminator.parameters(), naive.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    assert equal(adversary.discriminator, naive)


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 2),
    st.lists(st.integers(6, 20), min_size=3, max_size=3),
    st.sampled_from(["group", "none"]),
)
def test_a_patch_is_refused_where_it_leaves_no_score(layers, size, norm):
    experiment = make_experiment({"layers": layers})
    experiment = experiment.model_copy(
        update={"patches": PatchesConfig(size=tuple(n // 2 * 2 for n in size))}
    )
    discriminator = make_discriminator(AdversarialConfig(channels=4, layers=layers, norm=norm), 2)
    image = torch.zeros(1, 2, *experiment.patches.size)
    if min(experiment.patches.size) >= 3 * 2**layers:
        check_network(experiment, CPU)
        assert discriminator(image).numel() >= 1
    else:
        with pytest.raises(ConfigError, match=rf"at least {3 * 2**layers} voxels"):
            check_network(experiment, CPU)
        with pytest.raises((RuntimeError, ValueError)):
            discriminator(image)


def test_the_norm_of_the_options_is_in_the_discriminator():
    config = AdversarialConfig(channels=4, layers=2, r_max=2.0, d_max=1.0, momentum=0.3)
    layers = [layer for layer in make_discriminator(config, 3).modules() if isinstance(layer, BatchRenorm3d)]
    assert [layer.num_features for layer in layers] == [8, 16]
    assert {(layer.r_max, layer.d_max, layer.momentum) for layer in layers} == {(2.0, 1.0, 0.3)}
    spectral = make_discriminator(AdversarialConfig(channels=4, layers=2, norm="spectral"), 3)
    largest = [
        torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item()
        for layer in spectral.modules()
        if isinstance(layer, nn.Conv3d)
    ]
    assert largest == pytest.approx([1.0] * 4, abs=0.1)


@pytest.mark.parametrize("norm", ["batch_renorm", "spectral"])
def test_both_learn_and_the_network_raises_the_score(norm):
    batches = make_batches(1) * 60
    experiment = make_experiment(
        {"norm": norm, "weight": 1e-6, "learning_rate": 3e-3}, steps=60, learning_rate=1e-6
    )
    _, records = train(experiment, batches)
    assert records[-1].discriminator_loss < 0.5 * records[0].discriminator_loss
    assert records[-1].adversarial_loss > 0.5  # it knows the fake
    deceiving = make_experiment(
        {"norm": norm, "weight": 1.0, "learning_rate": 3e-3}, steps=60, learning_rate=0.02
    )
    _, deceived = train(deceiving, batches)
    assert deceived[-1].adversarial_loss < records[-1].adversarial_loss


def test_it_begins_where_it_is_told_and_changes_nothing_before():
    batches = make_batches(6)
    plain, plain_records = train(make_experiment(None, steps=6), batches)
    off, off_records = train(make_experiment({"begin": 0.5}, steps=6), batches)
    assert [record.discriminator_loss is None for record in off_records] == [True] * 3 + [False] * 3
    # the fourth step's loss is known before the adversary changes a weight
    assert [record.loss for record in plain_records[:4]] == [record.loss for record in off_records[:4]]
    assert plain_records[4].loss != off_records[4].loss
    assert not equal(plain.network, off.network)


def test_accumulation_adds_up():
    """Two passes of a half each are one of the whole, where no norm looks at the batch."""
    experiment = make_experiment({"norm": "group"})
    batch = make_batches(1)[0]
    logits = torch.randn(2, 2, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    whole, halves = (make_adversary(experiment, 1, TARGETS, CPU) for _ in range(2))
    whole.challenge(batch["image"], logits, batch["label"])
    for item in range(2):
        part = slice(item, item + 1)
        halves.challenge(batch["image"][part], logits[part], batch["label"][part], 0.5)
    weights = [adversary.discriminator.parameters() for adversary in (whole, halves)]
    for one, other in zip(*weights, strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    assert whole.read_losses() == pytest.approx(halves.read_losses(), rel=1e-5)


@pytest.mark.parametrize("norm", ["batch_renorm", "spectral"])
def test_logits_in_bfloat16_are_judged_in_float32(norm):
    experiment, batch = make_experiment({"norm": norm, "weight": 1.0}), make_batches(1)[0]
    drawn = torch.randn(2, 2, 8, 8, 8, generator=torch.Generator().manual_seed(1)).bfloat16()
    found = []
    for logits in (drawn.clone().requires_grad_(), drawn.float().requires_grad_()):
        adversary = make_adversary(experiment, 1, TARGETS, CPU)
        adversary.start(0)
        term = adversary.challenge(batch["image"], logits, batch["label"])
        term.backward()
        assert logits.grad.dtype == logits.dtype and term.dtype == torch.float32
        found.append((term.item(), logits.grad.bfloat16()))
    assert found[0][0] == found[1][0] and torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("norm", ["batch_renorm", "spectral"])
def test_a_checkpoint_restores_the_discriminator(tmp_path, norm):
    experiment, batches = make_experiment({"norm": norm}), make_batches(6)
    whole, records = train(experiment, batches)
    first = make_experiment({"norm": norm}, steps=6)
    half = make_full_state(first)
    kept = []

    def stop(record):
        kept.append(record)
        if record.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_steps(
            half,
            iter(batches),
            first,
            0,
            loss_function=LOSS,
            dtype=torch.float32,
            processes=Processes(),
            after_step=stop,
        )
    parts = (half.network, half.averaged, half.optimizer, 1, half.adversary)
    path = save_checkpoint(tmp_path, 3, *parts)
    resumed = make_full_state(make_experiment({"norm": norm}).model_copy(update={"seed": 5}))
    parts = (resumed.network, resumed.averaged, resumed.optimizer, 1, resumed.adversary)
    assert load_checkpoint(path, *parts) == 3
    _, rest = train(experiment, batches[3:], resumed, 3)
    assert equal(resumed.network, whole.network)
    assert equal(resumed.adversary.discriminator, whole.adversary.discriminator)
    losses = [[(r.loss, r.discriminator_loss) for r in found] for found in (records, kept + rest)]
    assert losses[0] == losses[1]


def test_a_discriminator_that_is_not_finite_is_named():
    experiment = make_experiment({})
    state = make_full_state(experiment)
    with torch.no_grad():
        state.adversary.discriminator.final_conv.conv.weight.fill_(math.nan)
    with pytest.raises(DivergenceError, match=r"training\.adversarial\.learning_rate") as caught:
        train(experiment, make_batches(6), state)
    assert "step 1" in str(caught.value) and "the loss of pass 1 is not finite" in str(caught.value)


def test_spoilt_statistics_of_the_discriminator_are_named_before_they_are_used():
    experiment = make_experiment({"norm": "batch"})
    state = make_full_state(experiment)
    layer = next(m for m in state.adversary.discriminator.modules() if isinstance(m, nn.BatchNorm3d))
    layer.running_var.fill_(math.inf)  # batch norm's training does not look at it
    with pytest.raises(DivergenceError, match=r"finite, but the discriminator's are not.*running_var"):
        train(experiment, make_batches(6), state)


def test_a_network_that_is_not_finite_is_still_traced():
    experiment = make_experiment({})
    batches = make_batches(6)
    batches[2]["image"][1, 0, 0, 0, 0] = math.nan
    with pytest.raises(DivergenceError, match=r"step 3.*1 voxels of b"):
        train(experiment, batches)


def test_the_table_has_the_columns_only_where_there_is_a_discriminator(tmp_path):
    record = StepRecord(1, 0.5, 0.01, 2.5, 0.1, 0.25)
    challenged = StepRecord(2, 0.5, 0.01, 2.5, 0.1, 0.25, None, -0.5, 1.5)
    with Recorder(tmp_path, 0) as recorder:
        recorder.write(record)
    path = tmp_path / "metrics.csv"
    header = "step,loss,learning_rate,gradient_norm,seconds,loader_share,dice"
    assert path.read_text().splitlines()[0] == header
    with Recorder(tmp_path, 1, adversarial=True) as recorder:
        recorder.write(challenged)
    assert path.read_text().splitlines()[0] == f"{header},adversarial_loss,discriminator_loss"
    assert read_metrics(path) == [record, challenged]


def train_until_step(arguments: list, env: dict, run: Path, step: int) -> None:
    """Kill the run once its records show the step."""
    process = subprocess.Popen(
        arguments, env=env, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not any(row.step >= step for row in read_metrics(run / "metrics.csv")):
        time.sleep(0.02)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["batch_renorm", "spectral"])
def test_a_killed_run_resumes_to_the_same_weights(
    run_command, command_line, one_thread, tiny_config, tmp_path, norm
):
    option = f"training.adversarial={{norm: {norm}, channels: 4, layers: 2, begin: 0.1}}"
    arguments = ("train", tiny_config, "-s", option, "-o")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run_command(*arguments, whole).returncode == 0
    train_until_step(command_line(*arguments, killed), one_thread, killed, step=10)
    assert not (killed / "model").exists()
    resumed = run_command(*arguments, killed, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    for name in ("checkpoint/step_00000030/state.safetensors", "model/model.safetensors"):
        one, other = load_file(whole / name), load_file(killed / name)
        assert [key for key in one if not one[key].equal(other[key])] == []
        assert name.startswith("checkpoint") == any(key.startswith("discriminator.") for key in one)
    rows = [read_metrics(run / "metrics.csv") for run in (whole, killed)]
    assert [row.discriminator_loss is None for row in rows[0]] == [True] * 3 + [False] * 27
    assert [row.discriminator_loss for row in rows[0]] == [row.discriminator_loss for row in rows[1]]
