"""Large volumes within a given memory, held-out scans of a trained model, and real scans' grids."""

import json
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
from inference.context import Context
from inference.measuring import make_table, report
from inference.subjects import make_ct, make_model

from medseg_brn.config import NetworkConfig

LARGE_SHAPE, LARGE_CLASSES, LARGE_MEMORY, LARGE_BYTES = (512, 512, 600), 24, "4GB", 4e9
LARGE_CHANNELS = (16, 32, 64, 128, 160)
PATCH = (128, 128, 128)
SAID = {True: "yes", False: "NO", None: "not compared"}


def run_memory(context: Context) -> None:
    """Infer a volume whose class scores alone would take 15 GB, within 4 GB."""
    folder = context.output / "memory"
    scan, model = folder / "scan.nii.gz", folder / "model"
    if not scan.is_file():
        make_ct(scan, LARGE_SHAPE, (1.5, 1.5, 1.5))
    make_model(model, NetworkConfig(channels=LARGE_CHANNELS), LARGE_CLASSES, PATCH)
    label_map = folder / "label_map.nii.gz"
    found = context.infer(model, scan, label_map, "--memory", LARGE_MEMORY, "-v")
    shape = cast(nib.Nifti1Image, nib.load(label_map)).shape
    largest = max(found.largest_bytes, found.sum_bytes)
    met = shape == LARGE_SHAPE and largest <= LARGE_BYTES
    columns = ("volume", "wall s", "largest process GB", "all processes GB", "within")
    cells = (f"{found.seconds:.0f}", f"{found.largest_bytes / 1e9:.2f}", f"{found.sum_bytes / 1e9:.2f}")
    title = f"{'x'.join(map(str, LARGE_SHAPE))}, {LARGE_CLASSES} classes, --memory {LARGE_MEMORY}"
    table = make_table(title, columns, [("512x512x600", *cells, "yes" if met else "NO")])
    notes = (
        f"One run; channels {'-'.join(map(str, LARGE_CHANNELS))}, random weights, network grid 1.5 mm, so "
        "nothing is resampled. What infer -v says:",
        found.output.strip(),
    )
    raw = {**context.describe(), "run": found, "met": met}
    report("memory", context.output, table, raw, notes)


def run_hippocampus(context: Context) -> None:
    """Dice of the held-out scans, exact beside overlapping windows, with the same model."""
    assert context.data is not None and context.hippocampus_run is not None
    dataset = context.data / "Task04_Hippocampus"
    held_out = json.loads((context.hippocampus_run / "split.json").read_text(encoding="utf-8"))["validation"]
    scans = [dataset / "imagesTr" / f"{case}.nii.gz" for case in held_out]
    results: dict[str, Any] = {}
    for name, options in (("exact", ()), ("windows", ("--overlap", 0.5))):
        folder = context.output / "hippocampus" / name
        for old in folder.glob("*.nii.gz"):  # else they count as done
            old.unlink()
        inferred = context.ours(
            *("infer", context.hippocampus_run, *scans, "-o", folder, "--device", "cpu"),
            *("--threads", context.threads, *options),
        )
        metrics = folder.with_suffix(".json")
        context.ours("evaluate", folder, dataset / "labelsTr", "-o", metrics)
        content = json.loads(metrics.read_text(encoding="utf-8"))
        dice = np.array([case["dice_mean"] for case in content["cases"]])
        results[name] = {"summary": content["summary"], "dice": dice, "infer": inferred}
    rows = [
        [
            name,
            f"{found['summary']['dice_mean']:.5f}",
            *(f"{one['dice_mean']:.5f}" for one in found["summary"]["classes"].values()),
            f"{found['infer'].seconds:.1f}",
        ]
        for name, found in results.items()
    ]
    columns = ("hippocampus", "Dice", *results["exact"]["summary"]["classes"], "infer s")
    apart = results["exact"]["dice"] - results["windows"]["dice"]
    verdict = "not lower" if apart.mean() >= 0 else "LOWER"
    notes = (
        f"{len(scans)} held-out scans; exact is {verdict}: scan by scan {apart.mean():+.5f} ± "
        f"{1.96 * apart.std(ddof=1) / len(apart) ** 0.5:.5f} (95 %). Windows are of the size that the "
        "model was trained on.",
    )
    table = make_table("held-out scans, one model", columns, rows)
    report("hippocampus", context.output, table, {**context.describe(), "results": results}, notes)


def run_real(context: Context) -> None:
    """Real CT, MRI and DICOM: the label map lies on exactly the scan's grid."""
    assert context.data is not None
    source, folder = context.data / "abdomen_ct", context.output / "real"
    make_model(folder / "model", NetworkConfig(channels=(8, 16, 24, 32)), 4, (64, 64, 64))
    cases = {
        "CT, 3 mm": (source / "example_ct.nii.gz", source / "example_ct.nii.gz"),
        "CT and its label map": (source / "example_ct_sm.nii.gz", source / "example_seg.nii.gz"),
        "MRI, LPS": (source / "example_mr_sm.nii.gz", source / "example_mr_sm.nii.gz"),
        "DICOM and its label map": (source / "dicom", source / "example_seg_dicom.nii.gz"),
    }
    results = {}
    for name, (scan, reference) in cases.items():
        label_map = folder / f"{scan.name.split('.')[0]}.nii.gz"
        context.infer(folder / "model", scan, label_map)
        results[name] = compare_grids(label_map, reference)
    rows = [[name, *(SAID[value] for value in found.values())] for name, found in results.items()]
    columns = ("scan", "shape", "affine", "sform", "qform", "codes")
    notes = (
        "Compared with nibabel: the label map's header with the scan's; of DICOM, with that of a label map "
        "made by others, after turning both to RAS+, as its array axes are another choice.",
        "All orientations and oblique affines are a property test in tests/.",
    )
    table = make_table("label maps on real scans' grids", columns, rows)
    report("real", context.output, table, {**context.describe(), "results": results}, notes)


def compare_grids(label_map: Path, reference: Path) -> dict[str, bool | None]:
    """Say what of two images' headers agrees, by nibabel alone."""
    made, given = (cast(nib.Nifti1Image, nib.load(path)) for path in (label_map, reference))
    turned = reference.name == "example_seg_dicom.nii.gz"
    if turned:
        made, given = nib.as_closest_canonical(made), nib.as_closest_canonical(given)
    codes = [(int(image.header["sform_code"]), int(image.header["qform_code"])) for image in (made, given)]
    return {
        "shape": made.shape == given.shape[:3],
        "affine": bool(np.allclose(made.affine, given.affine, atol=1e-3 if turned else 0, rtol=0)),
        "sform": None if turned else _same(made.get_sform(coded=True)[0], given.get_sform(coded=True)[0]),
        "qform": None if turned else _same(made.get_qform(coded=True)[0], given.get_qform(coded=True)[0]),
        "codes": None if turned else codes[0] == codes[1],
    }


def _same(made: np.ndarray | None, given: np.ndarray | None) -> bool:
    if made is None or given is None:
        return made is given
    return bool(np.array_equal(made, given))
