"""Exact evaluation: a U-Net's scores of a volume of any size, in tiles, as if it were computed in one piece.

Where every layer of a network is a convolution with fixed weights (norms folded), an output voxel depends on
a bounded neighbourhood only. Each level is computed tile by tile, and each tile with the halo that its own
convolutions need (`networks/levels.py`), so the result is that of the whole volume: no seams, no overlap,
no blending.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from medseg_brn.inference.features import FeatureMap
from medseg_brn.inference.needed import Needed
from medseg_brn.inference.plan import Plan
from medseg_brn.inference.tiles import Box, box_shape, expand, list_tiles, scale_down, scale_up, whole, within
from medseg_brn.networks.levels import Level, Piece
from medseg_brn.networks.unet3d import UNet3d
from medseg_brn.volumes.scratch import Scratch


class ExactEvaluation:
    """One network on one image: every level computed but the decoder's finest, which `scores` computes."""

    def __init__(
        self,
        network: UNet3d,
        levels: Sequence[Level],
        image: np.ndarray,
        plan: Plan,
        scratch: Scratch,
        *,
        device: torch.device,
        dtype: torch.dtype,
        needed: Needed,
        on_tile: Callable[[], None] = lambda: None,
    ) -> None:
        """Compute the levels.

        Args:
            network: folded or quantized, on `device`, channels last.
            levels: of the network.
            image: (C, X, Y, Z) float32; may be a view with reversed axes, or on file.
            plan: made for the image's shape.
            scratch: where features on file wait.
            device: where to compute.
            dtype: what the network takes.
            needed: which blocks of the scores matter.
            on_tile: called after each tile.
        """
        self._levels, self._head, self._num_classes = levels, network.head, network.num_classes
        self._image, self._plan, self._scratch = image, plan, scratch
        self._device, self._dtype, self._needed = device, dtype, needed
        self._shapes = plan.level_shapes
        self._entries: dict[int, FeatureMap] = {}
        self._skips: dict[int, FeatureMap] = {}
        self._decoded: dict[int, FeatureMap] = {}
        coarsest = len(levels) - 1
        for index in range(coarsest):
            self._encode_level(index, on_tile)
        if coarsest > 0:
            self._fill(coarsest, plan.encoder_tiles[-1], self._skip, on_tile)
            del self._entries[coarsest]
        for index in reversed(range(1, coarsest)):
            self._fill(index, plan.decoder_tiles[index], self._decode, on_tile)
            del self._decoded[index + 1], self._skips[index]

    def scores(self, start: int, stop: int) -> Tensor:
        """Return logits (K, stop - start, Y, Z), float32, of the image's planes from `start` to `stop`.

        Blocks that are not needed have meaningless ones.
        """
        planes: Box = (slice(start, stop), *whole(self._image.shape[1:])[1:])
        tile = (stop - start, *self._plan.score_tile[1:])
        logits = torch.empty(0)
        for box in list_tiles(box_shape(planes), tile):
            y, z = box[1:]
            features = self._finest((planes[0], y, z))
            if features is None:
                continue
            inner, values = features
            scores = self._head(values)[0].float()
            if logits.numel() == 0:
                logits = scores.new_zeros((len(scores), *box_shape(planes)))
            logits[:, inner[0].start - start : inner[0].stop - start, inner[1], inner[2]] = scores
        if logits.numel() == 0:
            logits = torch.zeros((self._num_classes, *box_shape(planes)), device=self._device)
        return logits

    def _finest(self, box: Box) -> tuple[Box, Tensor] | None:
        """Return the part of the box that is needed and its last features; None where nothing is."""
        inner = self._needed.bounds(0, box)
        if inner is None:
            return None
        return inner, (self._decode if len(self._levels) > 1 else self._skip)(0, inner)

    def _encode_level(self, index: int, on_tile: Callable[[], None]) -> None:
        """Compute the level's skip features and, from them, the entry of the next level."""
        level, following = self._levels[index], self._levels[index + 1]
        assert following.enter is not None
        shape = self._shapes[index + 1]
        entry = self._entries[index + 1] = self._new_map(index + 1)
        keep = index > 0 or not self._plan.recompute
        if keep:
            self._skips[index] = self._new_map(index)
        for tile in list_tiles(shape, self._plan.encoder_tiles[index]):
            outer = expand(tile, following.enter.halo, shape)
            region = scale_up(outer, level.upsample_stride)
            skip = self._skip(index, region)
            if keep:
                core = scale_up(tile, level.upsample_stride)
                self._skips[index].write(core, _cut(skip, within(core, region)))
            entry.write(tile, _cut(_run(following.enter, [skip]), within(tile, outer)))
            on_tile()
        self._entries.pop(index, None)

    def _fill(
        self,
        index: int,
        tile: Sequence[int],
        compute: Callable[[int, Box], Tensor],
        on_tile: Callable[[], None],
    ) -> None:
        """Compute the decoded features of a whole level, where they are needed."""
        features = self._decoded[index] = self._new_map(index)
        for box in list_tiles(self._shapes[index], tile):
            inner = self._needed.bounds(index, box)
            if inner is not None:
                features.write(inner, compute(index, inner))
            on_tile()

    def _skip(self, index: int, box: Box) -> Tensor:
        """Return the level's skip features in a box."""
        encode = self._levels[index].encode
        outer = expand(box, encode.halo, self._shapes[index])
        features = self._read_image(outer) if index == 0 else self._entries[index].read(outer)
        return _cut(_run(encode, [features]), within(box, outer))

    def _decode(self, index: int, box: Box) -> Tensor:
        """Return the level's decoded features in a box."""
        level = self._levels[index]
        assert level.decode is not None
        outer = expand(box, level.decode.halo, self._shapes[index], level.upsample_stride)
        joined = self._join(index, outer)
        return _cut(_run(level.decode, [joined]), within(box, outer))

    def _join(self, index: int, box: Box) -> Tensor:
        """Return upsampled and skip features one after the other, (1, 2 C, x, y, z).

        They are copied into one tensor, which for channels last is several times faster than `torch.cat`.
        """
        level = self._levels[index]
        assert level.upsample is not None
        kept = self._skips.get(index)
        skip = self._skip(index, box) if kept is None else kept.read(box)
        channels = level.channels
        joined = _empty_channels_last((1, 2 * channels, *box_shape(box)), skip)
        joined[:, channels:] = skip
        del skip
        coarser = self._decoded[index + 1].read(scale_down(box, level.upsample_stride))
        joined[:, :channels] = level.upsample(coarser)
        return joined

    def _read_image(self, box: Box) -> Tensor:
        """Return a part of the image, (1, C, x, y, z), with zeros beyond its upper ends."""
        values = np.array(self._image[:, *box], order="C")  # a mirrored image has strides torch does not take
        self._scratch.release(self._image)
        missing = np.subtract(box_shape(box), values.shape[1:])
        part = torch.from_numpy(values)[None].to(self._device, self._dtype)
        if missing.any():
            part = functional.pad(part, [n for size in reversed(missing.tolist()) for n in (0, size)])
        image = _empty_channels_last(part.shape, part)
        return image.copy_(part)

    def _new_map(self, index: int) -> FeatureMap:
        on_file = index < self._plan.levels_on_file
        return FeatureMap(self._shapes[index], self._scratch if on_file else None)


def _run(piece: Piece, features: list[Tensor]) -> Tensor:
    """Run the layers; the features are handed over in a list, so that none is held longer than it is used."""
    result = features.pop()
    for layer in piece.layers:
        result = layer(result)
    return result


def _cut(features: Tensor, box: Box) -> Tensor:
    return features[:, :, *box]


def _empty_channels_last(shape: Sequence[int], like: Tensor) -> Tensor:
    """A new tensor whose strides say channels last also where there is one channel, to which all is the same.

    For such an image the first convolution would otherwise give its features contiguous.
    """
    n, channels, *size = shape
    return torch.empty((n, *size, channels), dtype=like.dtype, device=like.device).permute(0, 4, 1, 2, 3)
