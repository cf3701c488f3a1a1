"""medseg_brn: 3D medical image segmentation with Batch Renormalization, for batches of one to four patches.

    import medseg_brn as ms
    model = ms.load_model("runs/hippocampus")      # run folder, model folder, or a name
    label_map = model.predict("scan.nii.gz")       # Volume on the scan's grid

Names are imported when they are first used, so that importing the package costs nothing. Once MONAI is
imported too, its Norm factory knows the layer: `monai.networks.nets.UNet(..., norm="batchrenorm")`.
"""

from importlib import import_module
from typing import Any

from medseg_brn.networks.monai_norm import register_in_monai

_ORIGINS = {
    "BatchRenorm1d": "networks.batch_renorm",
    "BatchRenorm2d": "networks.batch_renorm",
    "BatchRenorm3d": "networks.batch_renorm",
    "UNet3d": "networks.unet3d",
    "convert_normalization": "networks.surgery",
    "fold": "networks.surgery",
    "recalibrate": "networks.surgery",
    "load_model": "models.package",
    "probe": "probes.examination",
    "save_ensemble": "models.ensemble",
    "load_experiment": "experiment",
    "train_run": "training.run",
    "read_volume": "volumes.reading",
    "write_volume": "volumes.writing",
    "Volume": "volumes.volume",
    "Grid": "volumes.volume",
    "MedsegError": "errors",
}

__all__ = sorted(_ORIGINS)


def __getattr__(name: str) -> Any:
    if name not in _ORIGINS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ORIGINS[name]}"), name)


def __dir__() -> list[str]:
    return __all__


register_in_monai()
