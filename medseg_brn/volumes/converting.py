"""Images of other libraries as Volumes: nibabel's, SimpleITK's, MONAI's, and arrays with an affine."""

from typing import Any

import nibabel as nib
import numpy as np

from medseg_brn.errors import DataError
from medseg_brn.volumes.volume import Grid, Volume

KINDS = "paths, Volumes, images of nibabel or SimpleITK, MetaTensors of MONAI, or arrays with an affine"


def to_volumes(image: Any, affine: np.ndarray | None = None) -> list[Volume]:
    """One Volume per channel of an image in memory.

    Args:
        image: a Volume; an image of nibabel, (X, Y, Z) or (X, Y, Z, channels); of SimpleITK, 3D, of scalars
            or vectors; a MetaTensor of MONAI or an array, (X, Y, Z) or (channels, X, Y, Z).
        affine: (4, 4) voxel index to RAS+ mm, of an array, which has none of its own.

    Raises:
        DataError: it is of another kind, has other axes, holds no integers or real numbers, or has no affine
            or two of them.
    """
    if affine is not None and not isinstance(image, np.ndarray):
        raise DataError(
            f"affine was given for an image of type {type(image).__name__}, which tells itself where its "
            "voxels lie; leave it out, or give the image as an array"
        )
    if isinstance(image, Volume):
        return [image]
    if isinstance(image, nib.spatialimages.SpatialImage):
        return _split(np.asanyarray(image.dataobj), 3, np.asarray(image.affine, float), _find_header(image))
    if type(image).__module__.partition(".")[0] == "SimpleITK":
        return _from_sitk(image)
    own = getattr(image, "affine", None)
    if own is not None and hasattr(image, "meta") and hasattr(image, "detach"):
        return _split(image.detach().cpu().numpy(), 0, _affine_of_meta_tensor(image))
    if isinstance(image, np.ndarray):
        if affine is None:
            raise DataError(
                f"An array of shape {image.shape} does not say where its voxels lie; give affine, a (4, 4)"
                " matrix from voxel index to RAS+ mm"
            )
        return _split(image, 0, np.asarray(affine, float))
    raise DataError(f"Images are given as {KINDS}; not as {type(image).__name__}")


def _find_header(image: nib.spatialimages.SpatialImage) -> nib.Nifti1Header | None:
    """The header that a label map repeats: a NIfTI one that says what the image says."""
    header = image.header
    if isinstance(header, nib.Nifti1Header) and np.allclose(
        header.get_best_affine(), image.affine, atol=1e-4
    ):
        return header
    return None


def _from_sitk(image: Any) -> list[Volume]:
    # SimpleITK takes its time to load, and who has an image of it has loaded it.
    from SimpleITK import GetArrayFromImage

    from medseg_brn.volumes.itk import affine_of

    if image.GetDimension() != 3:
        raise DataError(f"A SimpleITK image of size {image.GetSize()} was given; a volume has three axes")
    array = GetArrayFromImage(image)
    return _split(array.transpose(2, 1, 0, *range(3, array.ndim)), 3, affine_of(image))


def _affine_of_meta_tensor(image: Any) -> np.ndarray:
    affine = np.asarray(image.affine.detach().cpu(), float)
    if str(image.meta.get("space", "RAS")) == "LPS":
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    return affine


def _split(
    array: np.ndarray, channel_axis: int, affine: np.ndarray, header: nib.Nifti1Header | None = None
) -> list[Volume]:
    """A Volume for each channel, where there is an axis of channels; else one."""
    if array.ndim not in (3, 4) or min(array.shape) < 1:
        raise DataError(
            f"An image of shape {array.shape} was given; a volume has three axes, or four with the channels"
            f" {'first' if channel_axis == 0 else 'last'}"
        )
    if array.dtype.kind not in "iuf":
        raise DataError(
            f"An image of values of type {array.dtype} was given; a volume holds integers or real numbers"
        )
    channels = [array] if array.ndim == 3 else list(np.moveaxis(array, channel_axis, 0))
    grid = Grid(channels[0].shape, affine, header)
    return [Volume(channel, grid) for channel in channels]
