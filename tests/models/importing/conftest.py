"""nnU-Net's networks, written once more in plain torch under nnU-Net's own names, and folders of them."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

SPACING_ZYX = (1.5, 1.0, 1.25)
STAGES = {
    "n_stages": 3,
    "features_per_stage": [4, 6, 8],
    "conv_op": "torch.nn.modules.conv.Conv3d",
    "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 1]],
    "n_conv_per_stage_decoder": [2, 1],
    "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}
BLOCKS = [2, 1, 2]
LABELS = {"background": 0, "organ": 1, "tumour": 2}


class Block(nn.Module):
    """Convolution, InstanceNorm, LeakyReLU; the layers stand a second time in `all_modules`."""

    def __init__(self, entering, leaving, kernel, stride, *, bias=True, activation=True) -> None:
        super().__init__()
        padding = [size // 2 for size in kernel]
        self.conv = nn.Conv3d(entering, leaving, kernel, stride, padding, bias=bias)
        self.norm = nn.InstanceNorm3d(leaving, affine=True)
        last = [nn.LeakyReLU(0.01)] if activation else []
        self.all_modules = nn.Sequential(self.conv, self.norm, *last)

    def forward(self, features):
        return self.all_modules(features)


class Stack(nn.Module):
    def __init__(self, widths, kernel, stride) -> None:
        super().__init__()
        strides = [stride] + [(1, 1, 1)] * len(widths)
        self.convs = nn.Sequential(
            *(Block(*pair, kernel, own) for pair, own in zip(pairwise(widths), strides, strict=False))
        )

    def forward(self, features):
        return self.convs(features)


class Residual(nn.Module):
    def __init__(self, entering, leaving, kernel, stride) -> None:
        super().__init__()
        self.conv1 = Block(entering, leaving, kernel, stride)
        self.conv2 = Block(leaving, leaving, kernel, (1, 1, 1), activation=False)
        strides, widens = max(stride) > 1, entering != leaving
        skip = [nn.AvgPool3d(stride, stride)] if strides else []
        if widens:
            skip.append(Block(entering, leaving, (1, 1, 1), (1, 1, 1), bias=False, activation=False))
        self.skip = nn.Sequential(*skip) if skip else None

    def forward(self, features):
        shortcut = features if self.skip is None else self.skip(features)
        return nn.functional.leaky_relu(self.conv2(self.conv1(features)) + shortcut, 0.01)


class ResidualStage(nn.Module):
    def __init__(self, entering, leaving, kernel, stride, count) -> None:
        super().__init__()
        more = [Residual(leaving, leaving, kernel, (1, 1, 1)) for _ in range(count - 1)]
        self.blocks = nn.Sequential(Residual(entering, leaving, kernel, stride), *more)

    def forward(self, features):
        return self.blocks(features)


class Encoder(nn.Module):
    def __init__(self, residual: bool, channels: int) -> None:
        super().__init__()
        widths, kernels = STAGES["features_per_stage"], STAGES["kernel_sizes"]
        self.stem = Stack([channels, widths[0]], kernels[0], (1, 1, 1)) if residual else None
        entering = [widths[0] if residual else channels, *widths]
        stages = []
        for level, (width, kernel) in enumerate(zip(widths, kernels, strict=True)):
            stride = tuple(STAGES["strides"][level])
            if residual:
                stages.append(ResidualStage(entering[level], width, kernel, stride, BLOCKS[level]))
            else:
                stack = Stack([entering[level]] + [width] * BLOCKS[level], kernel, stride)
                stages.append(nn.Sequential(stack))
        self.stages = nn.Sequential(*stages)

    def forward(self, image):
        features, skips = image if self.stem is None else self.stem(image), []
        for stage in self.stages:
            features = stage(features)
            skips.append(features)
        return skips


class Decoder(nn.Module):
    def __init__(self, encoder, heads: int) -> None:
        super().__init__()
        self.encoder = encoder  # so that its weights stand in the state dict a second time
        widths, kernels = STAGES["features_per_stage"][::-1], STAGES["kernel_sizes"][::-1]
        strides, counts = STAGES["strides"][::-1], STAGES["n_conv_per_stage_decoder"]
        self.stages = nn.ModuleList(
            Stack([2 * width] + [width] * count, kernel, (1, 1, 1))
            for width, kernel, count in zip(widths[1:], kernels[1:], counts, strict=True)
        )
        self.transpconvs = nn.ModuleList(
            nn.ConvTranspose3d(*pair, tuple(stride), tuple(stride))
            for pair, stride in zip(pairwise(widths), strides, strict=False)
        )
        self.seg_layers = nn.ModuleList(nn.Conv3d(width, heads, 1) for width in widths[1:])

    def forward(self, skips):
        features = skips.pop()
        for upsample, stage in zip(self.transpconvs, self.stages, strict=True):
            features = stage(torch.cat((upsample(features), skips.pop()), 1))
        return self.seg_layers[-1](features)


class NNUNet(nn.Module):
    def __init__(self, residual: bool, channels: int, heads: int) -> None:
        super().__init__()
        self.encoder = Encoder(residual, channels)
        self.decoder = Decoder(self.encoder, heads)

    def forward(self, image):
        return self.decoder(self.encoder(image))


def make_plans(residual: bool, forward=(0, 1, 2), scheme="ZScoreNormalization", channels=1) -> dict:
    kind = "ResidualEncoderUNet" if residual else "PlainConvUNet"
    blocks = "n_blocks_per_stage" if residual else "n_conv_per_stage"
    return {
        "dataset_name": "Dataset900_Toy",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": list(forward),
        "foreground_intensity_properties_per_channel": {
            "0": {"mean": 40.0, "std": 20.0, "percentile_00_5": -60.0, "percentile_99_5": 120.0}
        },
        "configurations": {
            "base": {"normalization_schemes": [scheme] * channels, "use_mask_for_norm": [False] * channels},
            "3d_fullres": {
                "inherits_from": "base",
                "patch_size": [8, 12, 16],
                "spacing": [SPACING_ZYX[axis] for axis in forward],
                "architecture": {
                    "network_class_name": f"dynamic_network_architectures.architectures.unet.{kind}",
                    "arch_kwargs": {**STAGES, blocks: BLOCKS},
                },
            },
        },
    }


@pytest.fixture
def plans():
    return make_plans


@pytest.fixture
def save_nnunet(tmp_path):
    """Writes a results folder with random networks, and returns it and them."""

    def save(residual=False, folds=1, labels=None, channels=1, changes=None, **planned):
        folder = tmp_path / "results"
        folder.mkdir(exist_ok=True)
        described = make_plans(residual, channels=channels, **planned)
        dataset = {"labels": labels or LABELS, "channel_names": {str(n): "T1" for n in range(channels)}}
        if any(isinstance(value, list) for value in dataset["labels"].values()):
            dataset["regions_class_order"] = [1, 2]
        (folder / "plans.json").write_text(json.dumps(described))
        (folder / "dataset.json").write_text(json.dumps(dataset))
        networks = []
        for fold in range(folds):
            torch.manual_seed(fold)
            heads = 2 if "regions_class_order" in dataset else len(dataset["labels"])
            networks.append(randomize(NNUNet(residual, channels, heads)).eval())
            save_checkpoint(folder / f"fold_{fold}", networks[-1].state_dict(), **(changes or {}))
        return folder, networks

    return save


def randomize(network: nn.Module) -> nn.Module:
    """γ, β and biases that are not 1 and 0, so that each counts; no class wins everywhere."""
    for parameter in network.parameters():
        if parameter.dim() == 1:
            nn.init.uniform_(parameter, -1.5, 1.5)
    for head in network.decoder.seg_layers:
        nn.init.normal_(head.weight)
        nn.init.constant_(head.bias, 0.01)
    return network


def save_checkpoint(folder: Path, weights: dict, **changes) -> None:
    """What nnU-Net 2.8's trainer saves: NumPy numbers in the log, a device among the arguments."""
    folder.mkdir(exist_ok=True)
    checkpoint = {
        "network_weights": weights,
        "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.01}]},
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float64(0.5)], "lrs": [0.01], "val_losses": [np.float32(0.1)]},
        "_best_ema": np.float64(0.5),
        "current_epoch": 1000,
        "init_args": {"configuration": "3d_fullres", "fold": 0, "device": torch.device("cpu")},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1),
    }
    torch.save(checkpoint | changes, folder / "checkpoint_final.pth")
