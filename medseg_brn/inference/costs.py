"""What a plan costs: bytes of memory at the peak, bytes on file, multiplications."""

import math
from collections.abc import Sequence

from medseg_brn.networks.levels import Level, Piece
from medseg_brn.networks.unet3d import Size3

# Scores of the slab in work exist as the network's numbers, as floats, and once more while they are used.
SCORE_BYTES = 12


class Costs:
    """Costs of computing one volume with one network.

    Attributes:
        levels: of the network.
        num_classes: channels of the scores: classes, or regions.
        size: of the image, whole voxels of the coarsest level.
        item_bytes: of one number of the features.
        shapes: size of each level, finest first.
    """

    def __init__(self, levels: Sequence[Level], num_classes: int, size: Size3, item_bytes: int) -> None:
        self.levels, self.num_classes, self.size, self.item_bytes = levels, num_classes, size, item_bytes
        self.shapes = [size]
        for level in levels[:-1]:
            x, y, z = (n // step for n, step in zip(self.shapes[-1], level.upsample_stride, strict=True))
            self.shapes.append((x, y, z))
        self.least_multiplications = sum(
            math.prod(shape) * sum(piece.multiplications for piece in _pieces(level))
            for level, shape in zip(levels, self.shapes, strict=True)
        )

    def encoder_shape(self, index: int) -> Size3:
        """The grid on which the encoder's level is tiled: the next coarser one, or the coarsest itself."""
        return self.shapes[min(index + 1, len(self.levels) - 1)]

    def encoder_bytes(self, index: int, tile: Size3) -> int:
        """Bytes at once while a tile of `encoder_shape` is computed."""
        region = self._encoder_region(index, tile)
        level = self.levels[index]
        channels = max(level.encode.live_channels, level.channels + level.encode.in_channels)
        scores = self._score_bytes(tile) if len(self.levels) == 1 else 0
        return self._bytes(region, channels) + self._entering_bytes(index, tile) + scores

    def decoder_bytes(self, index: int, tile: Size3) -> int:
        """Bytes at once while a tile of the decoder's level is computed; at the finest, its scores too."""
        level = self.levels[index]
        assert level.decode is not None
        region = _grow(tile, level.decode.halo, level.upsample_stride, self.shapes[index])
        coarser = self.levels[index + 1].channels / math.prod(level.upsample_stride)
        scores = self._score_bytes(tile) if index == 0 else 0
        return self._bytes(region, level.decode.live_channels + coarser) + scores

    def simulate(
        self, encoder: Sequence[Size3], decoder: Sequence[Size3], on_file: int, recompute: bool
    ) -> tuple[int, int, int]:
        """Go through the stages; return bytes at the peak, bytes written to files, multiplications."""
        depth, peak, filed = len(self.levels), 0, 0
        waiting: dict[tuple[str, int], int] = {}

        def keep(name: str, index: int) -> None:
            nonlocal filed
            size = self._bytes(self.shapes[index], self.levels[index].channels)
            filed += size if index < on_file else 0
            waiting[name, index] = 0 if index < on_file else size

        def note(workspace: int) -> None:
            nonlocal peak
            peak = max(peak, sum(waiting.values()) + workspace)

        for index in range(depth - 1):
            keep("entry", index + 1)
            if index > 0 or not recompute:
                keep("skip", index)
            note(self.encoder_bytes(index, encoder[index]))
            waiting.pop(("entry", index), None)
        if depth > 1:
            keep("decoded", depth - 1)
        note(self.encoder_bytes(depth - 1, encoder[-1]))
        waiting.pop(("entry", depth - 1), None)
        for index in reversed(range(depth - 1)):
            if index > 0:
                keep("decoded", index)
            extra = self._recomputing_bytes(decoder[0]) if recompute and index == 0 else 0
            note(self.decoder_bytes(index, decoder[index]) + extra)
            waiting.pop(("decoded", index + 1), None)
            waiting.pop(("skip", index), None)
        return peak, filed, self._multiplications(encoder, decoder, recompute)

    def _multiplications(self, encoder: Sequence[Size3], decoder: Sequence[Size3], recompute: bool) -> int:
        total = 0
        for index, level in enumerate(self.levels):
            tiles = math.prod(map(math.ceil, _ratios(self.encoder_shape(index), encoder[index])))
            region = self._encoder_region(index, encoder[index])
            total += tiles * math.prod(region) * level.encode.multiplications
            if index + 1 < len(self.levels):
                enter = self.levels[index + 1].enter
                assert enter is not None
                grown = _grow(encoder[index], enter.halo, (1, 1, 1), self.encoder_shape(index))
                total += tiles * math.prod(grown) * enter.multiplications
        for index, tile in enumerate(decoder):
            level = self.levels[index]
            assert level.decode is not None
            tiles = math.prod(map(math.ceil, _ratios(self.shapes[index], tile)))
            region = _grow(tile, level.decode.halo, level.upsample_stride, self.shapes[index])
            total += tiles * math.prod(region) * level.decode.multiplications
            if index == 0 and recompute:
                region = _grow(region, level.encode.halo, (1, 1, 1), self.size)
                total += tiles * math.prod(region) * level.encode.multiplications
        return total

    def _encoder_region(self, index: int, tile: Size3) -> Size3:
        """The part of the level itself that is computed for a tile of `encoder_shape`."""
        level = self.levels[index]
        if index + 1 < len(self.levels):
            enter = self.levels[index + 1].enter
            assert enter is not None
            grown = _grow(tile, enter.halo, (1, 1, 1), self.encoder_shape(index))
            x, y, z = (size * step for size, step in zip(grown, level.upsample_stride, strict=True))
            tile = (x, y, z)
        return _grow(tile, level.encode.halo, (1, 1, 1), self.shapes[index])

    def _entering_bytes(self, index: int, tile: Size3) -> int:
        """Of the strided piece that follows, its output and what is cut out of it; its input is counted."""
        if index + 1 == len(self.levels):
            return 0
        enter = self.levels[index + 1].enter
        assert enter is not None
        grown = _grow(tile, enter.halo, (1, 1, 1), self.encoder_shape(index))
        return self._bytes(grown, enter.live_channels - enter.in_channels * math.prod(enter.stride))

    def _recomputing_bytes(self, tile: Size3) -> int:
        level = self.levels[0]
        assert level.decode is not None
        region = _grow(tile, level.decode.halo, level.upsample_stride, self.size)
        return self._bytes(_grow(region, level.encode.halo, (1, 1, 1), self.size), level.encode.live_channels)

    def _score_bytes(self, tile: Size3) -> int:
        """Of the scores of a tile's planes, which are handed on whole."""
        return tile[0] * math.prod(self.size[1:]) * self.num_classes * SCORE_BYTES

    def _bytes(self, shape: Size3, channels: float) -> int:
        return int(math.prod(shape) * channels * self.item_bytes)


def _pieces(level: Level) -> list[Piece]:
    return [piece for piece in (level.enter, level.encode, level.decode) if piece is not None]


def _grow(tile: Size3, halo: Size3, lattice: Size3, shape: Size3) -> Size3:
    """The largest size that a tile of a volume has with its halo on the lattice."""
    x, y, z = (
        min(size, side + 2 * math.ceil(extra / step) * step)
        for side, extra, step, size in zip(tile, halo, lattice, shape, strict=True)
    )
    return x, y, z


def _ratios(shape: Size3, tile: Size3) -> list[float]:
    return [size / side for size, side in zip(shape, tile, strict=True)]
