"""Adversarial refinement: a discriminator tells references from predictions, and the network deceives it.

A patch discriminator (Isola 2017, arXiv:1611.07004) sees the image and a segmentation of it, and scores every
neighbourhood. With the hinge loss (Lim and Ye 2017, arXiv:1705.02894) it lowers

    L_D = mean max(0, 1 - D(real)) + mean max(0, 1 + D(fake))

and the network lowers its own loss + weight · (-mean D(fake)). Luc et al. 2016 (arXiv:1611.08408) introduced
this for segmentation. Real is the reference, one channel per channel of the logits; fake is the prediction,
as probabilities. The finest logits count.

A norm that takes its statistics from the batch shows the discriminator how real and fake of one patch differ,
which neither shows alone: a leak. See `medseg-brn study adversarial`.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import gcd, inf, isfinite
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from medseg_brn.cases.targets import Targets
from medseg_brn.config import AdversarialConfig, Experiment
from medseg_brn.errors import ConfigError
from medseg_brn.networks.batch_renorm import Schedule
from medseg_brn.networks.monai_norm import register_in_monai
from medseg_brn.networks.normalization import set_renorm_step
from medseg_brn.probes.layers import training_norms
from medseg_brn.training.diagnosis.divergence import Cause
from medseg_brn.training.distributed import Processes, average_gradients
from medseg_brn.training.schedules import compute_learning_rate, compute_renorm_schedule
from medseg_brn.training.statistics_merge import StatisticsMerge

Pair = tuple[Tensor, Tensor]


def compute_hinge_loss(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """mean max(0, 1 - real) + mean max(0, 1 + fake), 0-dim, at least 0; 2 where all scores are 0."""
    return (1 - real_scores).clamp_min(0).mean() + (1 + fake_scores).clamp_min(0).mean()


class PairMaker:
    """Makes what the discriminator sees of a batch: (N, C + K, X, Y, Z), image first, then segmentation.

    Voxels of the ignore class have a segmentation of 0 in real and fake alike, so that nothing about them
    tells one from the other.
    """

    def __init__(self, targets: Targets, device: torch.device) -> None:
        self._members = torch.from_numpy(targets.members()).float().to(device)
        self._ignore_class = targets.ignore_class
        self._exclusive = not targets.regions

    def make(self, image: Tensor, logits: Tensor, classes: Tensor) -> Pair:
        """Real and fake; the fake carries the gradient to the logits.

        Args:
            image: (N, C, X, Y, Z).
            logits: (N, K, X, Y, Z).
            classes: (N, 1, X, Y, Z).
        """
        probabilities = logits.float().softmax(1) if self._exclusive else logits.float().sigmoid()
        if self._ignore_class is not None:
            probabilities = probabilities * (classes != self._ignore_class)
        reference = self._members[:, classes[:, 0]].movedim(0, 1)
        return torch.cat([image, reference], 1), torch.cat([image, probabilities], 1)


class Adversary:
    """A discriminator, its optimizer, and its part in each step of the training loop.

    It computes in float32 whatever the network does: in bfloat16, on a CPU, gradients of its last convolution
    were now and then not finite, and differed from run to run.

    A step is `start`, for each forward pass `challenge` (or, without a network to train, `learn`), `finish`.
    """

    def __init__(
        self,
        config: AdversarialConfig,
        discriminator: nn.Module,
        pairs: PairMaker,
        first_step: int,
        schedule: Schedule,
        learning_rate_at: Callable[[int], float],
    ) -> None:
        """Take part from optimizer step `first_step` (from 0) on.

        Args:
            config: the options.
            discriminator: (N, C + K, X, Y, Z) to scores (N, 1, x, y, z).
            pairs: makes its input.
            first_step: counted from 0.
            schedule: of the limits of its renorm layers, in steps from `first_step` on.
            learning_rate_at: of an optimizer step.
        """
        self.discriminator = discriminator
        self.optimizer = torch.optim.Adam(discriminator.parameters(), config.learning_rate, (0.5, 0.999))
        self._config = config
        self._pairs = pairs
        self._first_step, self._schedule = first_step, schedule
        self._learning_rate_at = learning_rate_at
        self._losses: list[Pair] = []
        self.join(Processes())

    def join(self, processes: Processes) -> None:
        """Take these processes for those that train together, with the same discriminator now."""
        self._processes = processes
        self._merge = StatisticsMerge(self.discriminator, processes)

    def has_begun(self, step: int) -> bool:
        """Whether it takes part in optimizer step `step` (from 0)."""
        return step >= self._first_step

    def start(self, step: int) -> None:
        """Make ready for optimizer step `step` (from 0)."""
        self.discriminator.train()
        set_renorm_step(self.discriminator, step - self._first_step, self._schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate_at(step)

    def challenge(self, image: Tensor, logits: Tensor, classes: Tensor, share: float = 1.0) -> Tensor:
        """Let the discriminator learn from a batch; return what the network is to lower beside its own loss.

        The network's pass through the discriminator normalizes as training does, in real's company where
        batches are mixed, but leaves the discriminator's statistics and gradients as they are.

        Args:
            image: (N, C, X, Y, Z).
            logits: (N, K, X, Y, Z), the finest.
            classes: (N, 1, X, Y, Z).
            share: of this batch in the step's gradient.

        Returns:
            weight · (-mean D(fake)), 0-dim float32.
        """
        real, fake = self._pairs.make(image, logits, classes)
        loss = self.learn(real, fake.detach(), share)
        with _frozen(self.discriminator):
            score = self._score_fake(real, fake).mean()
        self._losses.append((-score.detach(), loss))
        return -self._config.weight * score

    def learn(self, real: Tensor, fake: Tensor, share: float = 1.0) -> Tensor:
        """Add a batch's gradient to the discriminator's; return its hinge loss, 0-dim, without gradient.

        Args:
            real: (N, C + K, X, Y, Z) with reference segmentations.
            fake: the same with predicted ones.
            share: of this batch in the step's gradient.
        """
        if self._config.batches == "mixed":
            scores = self.discriminator(torch.cat([real, fake])).chunk(2)
        else:
            scores = self.discriminator(real), self.discriminator(fake)
            self._merge.note_pass()
        self._merge.note_pass()
        loss = compute_hinge_loss(*scores)
        (share * loss).backward()
        return loss.detach()

    def finish(self) -> None:
        """Make the discriminator's optimizer step, the same in all processes."""
        average_gradients(self.discriminator, self._processes)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._merge.start()
        self._merge.finish()

    def read_losses(self) -> dict[str, float]:
        """Means over the passes since the last call: -mean D(fake), unweighted, and the hinge loss."""
        terms, losses = zip(*self._losses, strict=True)
        self._losses.clear()
        return {
            "adversarial_loss": float(torch.stack(terms).mean()),
            "discriminator_loss": float(torch.stack(losses).mean()),
        }

    def explain(self, cause: Cause | None) -> Cause | None:
        """What ended the step: the cause that was found without the discriminator, or the discriminator.

        Args:
            cause: what was found in the network; None where all its numbers are finite.
        """
        numbers = dict(self._list_numbers())
        if cause is None and isfinite(nn.utils.get_total_norm(numbers.values(), inf)):
            return None
        broken = next((name for name, values in numbers.items() if not bool(values.isfinite().all())), None)
        told = f"in the discriminator, {broken} is not finite"
        if cause is None:
            return Cause("discriminator", told.capitalize())
        if cause.kind != "not repeated":
            return cause
        found = "Without the discriminator, the same passes are finite throughout"
        return Cause("discriminator", f"{found}; {told}" if broken else found)

    def _score_fake(self, real: Tensor, fake: Tensor) -> Tensor:
        if self._config.batches == "mixed":
            return self.discriminator(torch.cat([real, fake]))[len(real) :]
        return self.discriminator(fake)

    def _list_numbers(self) -> Iterator[tuple[str, Tensor]]:
        """What a step can spoil, by what it is called."""
        for number, (_, loss) in enumerate(self._losses, start=1):
            yield f"the loss of pass {number}", loss
        for name, weight in self.discriminator.named_parameters():
            if weight.grad is not None:
                yield f"the gradient of {name}", weight.grad
        for name, buffer in self.discriminator.named_buffers():
            if buffer.is_floating_point():
                yield name, buffer


def make_adversary(
    experiment: Experiment, in_channels: int, targets: Targets, device: torch.device
) -> Adversary | None:
    """The experiment's adversary with initial weights from its seed; None where it has none.

    The random numbers that others draw are the same with and without one.
    """
    config, training = experiment.training.adversarial, experiment.training
    if config is None:
        return None
    first_step = round(config.begin * training.steps)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.random.SeedSequence((experiment.seed, 1)).generate_state(1)[0]))
        discriminator = make_discriminator(config, in_channels + targets.num_outputs)
    discriminator.to(device)
    discriminator.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # not in the stubs
    return Adversary(
        config,
        discriminator,
        PairMaker(targets, device),
        first_step,
        compute_renorm_schedule(experiment.network, training.steps - first_step),
        # falls as the network's does
        lambda step: config.learning_rate * compute_learning_rate(step, training) / training.learning_rate,
    )


def start_adversary(adversary: Adversary | None, step: int) -> Adversary | None:
    """The adversary, made ready for optimizer step `step` (from 0); None where there is none as yet."""
    if adversary is None or not adversary.has_begun(step):
        return None
    adversary.start(step)
    return adversary


def make_discriminator(config: AdversarialConfig, in_channels: int) -> nn.Module:
    """MONAI's PatchDiscriminator with the norm of the options: (N, in, X, Y, Z) to scores (N, 1, x, y, z)."""
    # Here, as it takes seconds, and few runs have a discriminator.
    from monai.networks.nets.patchgan_discriminator import PatchDiscriminator

    register_in_monai()
    network = PatchDiscriminator(
        spatial_dims=3,
        channels=config.channels,
        in_channels=in_channels,
        num_layers_d=config.layers,
        norm=_choose_norm(config),  # type: ignore[arg-type]  # MONAI's layers take None
        bias=config.norm in ("none", "spectral"),
    )
    if config.norm == "spectral":
        for layer in network.modules():
            if isinstance(layer, nn.Conv3d):
                spectral_norm(layer)
    # Its own forward pass returns all features; the scores are what the last part makes of the others.
    return nn.Sequential(OrderedDict(network.named_children()))


def check_discriminator(experiment: Experiment) -> None:
    """Refuse patches that are too small for the discriminator.

    Raises:
        ConfigError: they are.
    """
    config, size = experiment.training.adversarial, experiment.patches.size
    if config is None or min(size) >= _least_size(config.layers):
        return
    fitting = max(
        (layers for layers in range(1, config.layers) if min(size) >= _least_size(layers)), default=0
    )
    remedy = f"lower training.adversarial.layers to {fitting} or " if fitting else ""
    raise ConfigError(
        f"Patch size {size} is too small for a discriminator of training.adversarial.layers ="
        f" {config.layers}, which takes at least {_least_size(config.layers)} voxels along each axis;"
        f" {remedy}enlarge patches.size"
    )


def _least_size(layers: int) -> int:
    """Voxels that leave a score: `layers` halvings, then two kernels of 4 with a margin of 1."""
    return 3 * 2**layers


def _choose_norm(config: AdversarialConfig) -> tuple[str, dict[str, Any]] | None:
    match config.norm:
        case "batch_renorm":
            limits = {"r_max": config.r_max, "d_max": config.d_max, "schedule": (0, 0, 0)}
            return "batchrenorm", {"momentum": config.momentum, **limits}
        case "batch":
            return "batch", {"momentum": config.momentum}
        case "group":
            return "group", {"num_groups": gcd(8, 2 * config.channels)}
        case "instance":
            return "instance", {"affine": True}
    return None


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Passes within the block normalize as training does and leave the network as it is."""
    network.requires_grad_(False)
    try:
        with training_norms(network):
            yield
    finally:
        network.requires_grad_(True)
