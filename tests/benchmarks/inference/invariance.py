"""How much a prediction changes with the way it is cut: exact evaluation beside overlapping windows."""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from inference.context import Context
from inference.measuring import make_table, report
from inference.subjects import make_ct, make_network, normalize
from rich.console import Console
from torch.nn import functional

from medseg_brn.config import NetworkConfig
from medseg_brn.errors import ConfigError
from medseg_brn.inference.lowering import lower
from medseg_brn.inference.prediction import Options, compute_scores
from medseg_brn.inference.predictor import Predictor
from medseg_brn.inference.tiles import round_up
from medseg_brn.networks.folding import fold
from medseg_brn.networks.unet3d import UNet3d
from medseg_brn.volumes.reading import read_volume
from medseg_brn.volumes.scratch import Scratch

CPU = torch.device("cpu")
SHAPE = (115, 93, 75)  # odd, at about 3.4 mm an abdomen
SPACING_MM = (3.4, 3.4, 3.4)
NUM_CLASSES = 4
# Of the memory of the plan in one piece.
SHARES = (0.8, 0.65, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.12, 0.1, 0.08)
LEAST_PLANS = 4
NETWORKS: dict[str, dict[str, Any]] = {
    "four levels": {"channels": (8, 16, 24, 32)},
    "six levels": {"channels": (8, 12, 16, 24, 32, 32), "decoder_blocks": 2},
    "anisotropic strides": {
        "channels": (8, 16, 24, 32),
        "strides": [(1, 1, 1), (2, 2, 1), (2, 2, 2), (1, 2, 2)],
        "kernels": [(3, 3, 1), (3, 3, 3), (3, 3, 3), (3, 3, 3)],
    },
    "residual encoder": {"channels": (8, 16, 24, 32), "encoder": "residual", "encoder_blocks": (1, 2, 2, 2)},
}
NORMS = ("instance", "group", "batch_renorm")
WINDOWS = ((64, 64, 64), (48, 48, 48))
NOTES = (
    f"A phantom CT of {'x'.join(map(str, SHAPE))} voxels; networks with random weights, renorm statistics of "
    "patches of it. 'Whole' is the folded network called once on the volume; 'plans' are different plans "
    "forced by smaller budgets. Differences are of softmax probabilities, maximum over voxels and classes.",
    f"Windows overlap by half and are blended with a Gaussian map; sizes {WINDOWS[0][0]}³ and "
    f"{WINDOWS[1][0]}³. For renorm, exact evaluation is the default and windows are shown for comparison.",
    "Plans are compared with the same layers, in the same number format, in one piece; 'labels as torch' "
    "compares them with the fp32 network computed by torch's own choice of kernels, which round otherwise.",
)


def run_section(context: Context) -> None:
    """Print both tables; fail where the exact evaluation is not what it promises."""
    torch.set_num_threads(context.threads)
    scan = context.output / "invariance" / "scan.nii.gz"
    make_ct(scan, SHAPE, SPACING_MM)
    image = normalize(read_volume(scan).array)
    exact = {
        f"{name}, {precision}": _compare_plans(make_network(_config(name), NUM_CLASSES, image), image, dtype)
        for name in NETWORKS
        for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
    }
    rows = [
        [
            name,
            len(found["plans"]),
            f"{found['difference']:.1e}",
            f"{found['labels_equal']:.4%}",
            f"{found['labels_as_fp32']:.4%}",
            "yes" if found["met"] else "NO",
        ]
        for name, found in exact.items()
    ]
    columns = ("exact evaluation", "plans", "max |Δp| to whole", "labels equal", "labels as torch", "met")
    table = make_table("invariance to the plan (fp32: ≤ 1e-5, all labels; bf16: ≥ 99.99 %)", columns, rows)
    windows = {norm: _compare_windows(norm, image) for norm in NORMS}
    raw = {**context.describe(), "exact": exact, "windows": windows}
    Console(width=150).print(table)
    rows = [
        [f"{norm}: {pair}", f"{found['difference']:.1e}", f"{found['labels_equal']:.3%}"]
        for norm, pairs in windows.items()
        for pair, found in pairs.items()
    ]
    table = make_table("overlapping windows", ("norm", "max |Δp|", "labels equal"), rows)
    report("invariance", context.output, table, raw, NOTES)


def _config(name: str) -> NetworkConfig:
    return NetworkConfig(**NETWORKS[name])


@torch.inference_mode()
def _whole(network: UNet3d, image: np.ndarray, dtype: torch.dtype | None = None) -> np.ndarray:
    """The folded network called once, zeros beyond the volume's upper ends: (K, X, Y, Z) probabilities.

    Args:
        network: not folded.
        image: (X, Y, Z).
        dtype: of the network as inference computes it; None is float32 by torch's own choice of kernels.
    """
    more = np.subtract(round_up(image.shape, network.strides_total), image.shape).tolist()
    padded = functional.pad(torch.from_numpy(image)[None, None], (0, more[2], 0, more[1], 0, more[0]))
    folded: Any = fold(network, tuple(padded.shape))
    logits = folded(padded) if dtype is None else lower(folded, CPU, dtype)(padded.to(dtype))
    x, y, z = image.shape
    return logits[0, :, :x, :y, :z].float().softmax(0).numpy()


def _compare_plans(network: UNet3d, image: np.ndarray, dtype: torch.dtype) -> dict[str, Any]:
    """Compare all plans that smaller budgets force with the volume in one piece."""
    predictor = Predictor(network, WINDOWS[0], CPU, dtype)
    expected, single = _whole(network, image, dtype), _whole(network, image).argmax(0)
    labels, most = expected.argmax(0), predictor.plan(image.shape, 1e15).predicted_bytes
    plans: dict[str, dict[str, float]] = {}
    for share in SHARES:
        try:
            found, plan = _predict(predictor, image, Options(budget_bytes=share * most))
        except ConfigError:  # less than the thriftiest plan needs
            break
        plans[plan] = {
            "budget_share": share,
            "difference": float(np.abs(found - expected).max()),
            "labels_equal": float((found.argmax(0) == labels).mean()),
            "labels_as_fp32": float((found.argmax(0) == single).mean()),
        }
    difference = max(plan["difference"] for plan in plans.values())
    equal, as_fp32 = (
        min(plan[name] for plan in plans.values()) for name in ("labels_equal", "labels_as_fp32")
    )
    good = difference <= 1e-5 and equal == 1 if dtype == torch.float32 else equal >= 0.9999
    return {
        "plans": plans,
        "difference": difference,
        "labels_equal": equal,
        "labels_as_fp32": as_fp32,
        "met": good and len(plans) >= LEAST_PLANS,
    }


def _compare_windows(norm: Any, image: np.ndarray) -> dict[str, dict[str, float]]:
    """Compare windows of two sizes with each other and with the whole volume, in fp32."""
    network = make_network(NetworkConfig(channels=(8, 16, 24, 32), norm=norm), NUM_CLASSES, image)
    results = {"whole": _whole(network, image)}
    for size in WINDOWS:
        predictor = Predictor(network, size, CPU, torch.float32)
        results[f"{size[0]}³"] = _predict(predictor, image, Options(windows=True, overlap=0.5))[0]
    pairs = [*pairwise(results), ("whole", f"{WINDOWS[1][0]}³")]
    return {
        f"{one} and {other}": {
            "difference": float(np.abs(results[one] - results[other]).max()),
            "labels_equal": float((results[one].argmax(0) == results[other].argmax(0)).mean()),
        }
        for one, other in pairs
    }


def _predict(predictor: Predictor, image: np.ndarray, options: Options) -> tuple[np.ndarray, str]:
    with Scratch() as scratch:
        scores = compute_scores([predictor], [image[None]], options, scratch)
        return np.concatenate(list(scores.slabs), axis=1), scores.plan
