"""Times the exact evaluation on an array, as `infer` does it between reading and writing.

    python our_forward.py MODEL IMAGE.npy THREADS PRECISION RESULT.npy

PRECISION is `fp32` or `bf16`. Prints the plan, and the seconds as the last line.
"""

import sys
import time

import numpy as np
import torch

from medseg_brn.inference.machine import available_memory_bytes
from medseg_brn.inference.prediction import Options, compute_scores
from medseg_brn.models.package import load_model
from medseg_brn.volumes.scratch import Scratch

BUDGET_SHARE = 0.5


def main() -> None:
    """Time one evaluation, slabs of probabilities taken, after a warm-up on a window."""
    folder, image_path, threads, precision, result = sys.argv[1:]
    torch.set_num_threads(int(threads))
    model = load_model(folder, "cpu", "bf16" if precision == "bf16" else "fp32")
    predictors = [member.predictor for member in model.members]
    image = np.load(image_path)
    options = Options(budget_bytes=BUDGET_SHARE * available_memory_bytes())
    with Scratch() as scratch:
        list(compute_scores(predictors, [image[:, :128, :128, :128]], options, scratch).slabs)
        start = time.perf_counter()
        scores = compute_scores(predictors, [image], options, scratch)
        labels = [slab.argmax(0).astype(np.uint8) for slab in scores.slabs]
        seconds = time.perf_counter() - start
    np.save(result, np.concatenate(labels))
    print(scores.plan)
    print(seconds)


if __name__ == "__main__":
    main()
