"""Trains nnU-Net for a given time; run by the Python of its own environment.

    python peer_nnunet.py train DATASET_ID FOLD SECONDS
    python peer_nnunet.py predict DATASET_ID FOLD IMAGES OUTPUT

nnU-Net's own plan, network, loss, augmentation and optimizer are used as they are. Its learning rate falls
with the share of the time that is over, as it falls with the share of the epochs in `run_training`, so that
it reaches its end; the validation on patches between epochs is left out, so that all the time goes into
training. The environment variables that nnU-Net reads are set by the caller.
"""

import json
import multiprocessing
import os
import sys
import time
from pathlib import Path

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.run_training import get_trainer_from_args

CONFIGURATION = "3d_fullres"
CPU = torch.device("cpu")


def train(dataset_id: str, fold: int, seconds: float) -> None:
    """Train for so many seconds and save the final checkpoint."""
    trainer = get_trainer_from_args(dataset_id, CONFIGURATION, fold, device=CPU)
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    start, steps = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        for group in trainer.optimizer.param_groups:
            group["lr"] = trainer.initial_lr * (1 - elapsed / seconds) ** 0.9
        trainer.train_step(next(trainer.dataloader_train))
        steps += 1
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    plan = trainer.configuration_manager
    print(
        json.dumps({
            "steps": steps,
            "seconds": round(time.perf_counter() - start),
            "batch_size": plan.batch_size,
            "patch": list(map(int, plan.patch_size)),
        })
    )  # fmt: skip
    # its loader's processes would keep this one alive, and outlive it
    sys.stdout.flush()
    for process in multiprocessing.active_children():
        process.kill()
    os._exit(0)


def predict(dataset_id: str, fold: int, images: str, output: str) -> None:
    """Segment a folder of images without and with mirroring, into OUTPUT/plain and OUTPUT/mirrored."""
    trainer = get_trainer_from_args(dataset_id, CONFIGURATION, fold, device=CPU)
    folder = str(Path(trainer.output_folder).parent)
    for name, mirroring in (("plain", False), ("mirrored", True)):
        predictor = nnUNetPredictor(use_mirroring=mirroring, device=CPU, allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(folder, use_folds=(fold,))
        target = str(Path(output) / name)
        predictor.predict_from_files(
            images, target, num_processes_preprocessing=1, num_processes_segmentation_export=1
        )


if __name__ == "__main__":
    if sys.argv[1] == "train":
        train(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
    else:
        predict(sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5])
