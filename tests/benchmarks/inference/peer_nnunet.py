"""Makes a model folder of nnU-Net with random weights; run by the Python of the peers' environment.

    python peer_nnunet.py FOLDER CLASSES SPACING_ZYX PATCH_ZYX

Architecture, resampling and normalization are those that nnU-Net's own planner gives for this patch size
and voxel size; the widths are its default limit, 32 to 320. The plan's strides are printed as JSON.
"""

import json
import sys
from pathlib import Path

import torch
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

LEAST_FEATURE_MAP = 4  # of the planner
WIDEST = 320
CT_STATISTICS = {
    "max": 3000.0, "mean": 60.0, "median": 65.0, "min": -1024.0,
    "percentile_00_5": -160.0, "percentile_99_5": 240.0, "std": 60.0,
}  # fmt: skip


def make_architecture(spacing: list[float], patch: list[int]) -> dict:
    """Return the architecture as the planner writes it."""
    _, strides, kernels, fitting, _ = get_pool_and_conv_props(spacing, patch, LEAST_FEATURE_MAP, 999999)
    if list(map(int, fitting)) != patch:
        raise SystemExit(f"the planner would change the patch {patch} to {list(fitting)}")
    stages = len(strides)
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": [min(WIDEST, 32 * 2**stage) for stage in range(stages)],
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [list(map(int, kernel)) for kernel in kernels],
            "strides": [list(map(int, stride)) for stride in strides],
            "n_conv_per_stage": [2] * stages,
            "n_conv_per_stage_decoder": [2] * (stages - 1),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def make_plans(name: str, spacing: list[float], patch: list[int]) -> dict:
    """Return `plans.json` with one configuration."""
    resampling = {"order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": patch,
        "median_image_size_in_voxels": [160, 256, 256],
        "spacing": spacing,
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, **resampling},
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, **resampling},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, **resampling},
        "batch_dice": False,
        "architecture": make_architecture(spacing, patch),
    }
    return {
        "dataset_name": name,
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": spacing,
        "original_median_shape_after_transp": [160, 256, 256],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": CT_STATISTICS},
    }


def main() -> None:
    """Write the folder and print the plan's architecture."""
    folder, classes = Path(sys.argv[1]), int(sys.argv[2])
    spacing = [float(part) for part in sys.argv[3].split(",")]
    patch = [int(part) for part in sys.argv[4].split(",")]
    labels = {"background": 0} | {f"structure {index}": index for index in range(1, classes)}
    dataset = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    plans = make_plans(folder.parent.name, spacing, patch)
    manager = PlansManager(plans)
    torch.manual_seed(0)
    network = nnUNetTrainer.build_network_architecture(
        manager, manager.get_configuration("3d_fullres"), 1, classes, enable_deep_supervision=False
    )
    (folder / "fold_0").mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps(dataset))
    (folder / "plans.json").write_text(json.dumps(plans))
    checkpoint = {
        "network_weights": network.state_dict(),
        "init_args": {"configuration": "3d_fullres"},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    print(json.dumps(plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]))


if __name__ == "__main__":
    main()
