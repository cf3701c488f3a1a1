"""A head as T1-weighted MRI with contrast agent shows it.

Scalp, skull, eyes, folded cortex, white matter, deep nuclei, ventricles, and lesions that take up the agent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np

from medseg_brn.cases.phantom_shapes import (
    Canvas,
    Deformation,
    FloatArray,
    SmoothNoise,
    capsule_depth,
    ellipsoid_depth,
    mirror_left_right,
    sample_deformation,
    sample_noise,
    smooth_union,
)

CLASS_NAMES = ("background", "brain", "ventricles", "lesion")
BRAIN, VENTRICLES, LESION = 1, 2, 3

# The box around a head, left-right, back-front, down-up.
EXTENT_MM = (176.0, 220.0, 176.0)

# Brightness of a tissue. Lesions are as bright as fat, grey matter as muscle and marrow, and the fluid in the
# ventricles as the fluid around the brain: places tell the classes apart, no threshold does.
AIR, FLUID, BONE, MARROW, MUSCLE = 0.02, 0.20, 0.10, 0.50, 0.42
GREY_MATTER, WHITE_MATTER, FAT, ENHANCEMENT = 0.50, 0.76, 0.95, 1.05

_CRANIUM_CENTRE, _CRANIUM_RADII = (0, -6, 14), (70, 88, 74)
_SKULL_MM = 8.0


@dataclass(frozen=True)
class Lesion:
    """A roundish bright spot in the white matter, dark inside if large; positions in mm of the template."""

    centre: tuple[float, float, float]
    radius_mm: float
    core_brightness: float


@dataclass(frozen=True, eq=False)
class Head:
    """One person's head: everything that differs between people, and nothing of the scanner."""

    deformation: Deformation
    folds: SmoothNoise
    texture: SmoothNoise
    ventricle_scale: float
    lesions: tuple[Lesion, ...]

    def draw(self, points: FloatArray, edge_mm: float) -> Canvas:
        """Returns the head's image (brightness 0 to 1) and label map at points (3, X, Y, Z) in world mm."""
        template = self.deformation(points)
        canvas = Canvas(points.shape[1:], AIR, edge_mm)
        _paint_face_and_neck(canvas, template, self.folds)
        _paint_skull(canvas, template)
        brain = _paint_brain(canvas, template, self.folds, self.texture)
        canvas.paint(ventricle_depth(template, self.ventricle_scale), FLUID, VENTRICLES)
        for lesion in self.lesions:
            depth = np.minimum(self._lesion_depth(template, lesion), brain)
            canvas.paint(depth, ENHANCEMENT, LESION)
            canvas.paint(depth - 7, lesion.core_brightness)
        return canvas

    def _lesion_depth(self, template: FloatArray, lesion: Lesion) -> FloatArray:
        ball = ellipsoid_depth(template, lesion.centre, (lesion.radius_mm,) * 3)
        # Half the positions, twice the wavelength: the folds' noise makes dents wider than the cortex's.
        return cast(
            FloatArray, ball + np.float32(0.12 * lesion.radius_mm) * self.folds(template * np.float32(0.5))
        )


def sample_head(rng: np.random.Generator) -> Head:
    """Returns a random head with 0 to 4 lesions (one head in twenty has none)."""
    deformation = sample_deformation(
        rng, scale_sd=0.04, rotation_sd_degrees=4, amplitude_mm=2.2, wavelength_mm=130
    )
    folds, texture = sample_noise(rng, 23, 12), sample_noise(rng, 14, 8)
    ventricle_scale = float(rng.uniform(0.9, 1.8))
    count = int(rng.choice(5, p=(0.05, 0.25, 0.3, 0.25, 0.15)))
    lesions = tuple(_sample_lesion(rng, folds, ventricle_scale) for _ in range(count))
    return Head(deformation, folds, texture, ventricle_scale, lesions)


def _sample_lesion(rng: np.random.Generator, folds: SmoothNoise, ventricle_scale: float) -> Lesion:
    """Returns a lesion centred in the white matter of the cerebrum, outside the ventricles."""
    radius_mm = float(rng.uniform(11, 18))
    candidates = rng.uniform((-48, -68, -5), (48, 62, 62), size=(500, 3)).T.astype(np.float32)
    inside = np.minimum(white_matter_depth(candidates, folds) - 2, hemispheres_depth(candidates) - radius_mm)
    room = np.minimum(inside, -ventricle_depth(candidates, ventricle_scale) - 0.7 * radius_mm)
    fitting = np.flatnonzero(room > 0)
    chosen = fitting[0] if len(fitting) else int(np.argmax(room))
    x, y, z = (float(value) for value in candidates[:, chosen])
    return Lesion((x, y, z), radius_mm, float(rng.uniform(0.26, 0.46)))


def ventricle_depth(template: FloatArray, scale: float) -> FloatArray:
    """Returns the depth in the lateral, third and fourth ventricles; `scale` widens them."""
    right = mirror_left_right(template)
    horns = capsule_depth(right, (9, 36, 14), (13, 4, 26), 6.5, 6.0)
    horns = smooth_union(horns, capsule_depth(right, (13, 4, 26), (25, -34, 17), 6.0, 8.0), 4)
    horns = smooth_union(horns, capsule_depth(right, (25, -34, 17), (33, -8, -14), 7.0, 3.5), 4)
    horns = smooth_union(horns, capsule_depth(right, (25, -36, 17), (17, -58, 12), 6.0, 3.5), 4)
    third = ellipsoid_depth(template, (0, 2, 4), (2.5, 14, 11))
    fourth = ellipsoid_depth(template, (0, -34, -34), (7, 5, 9))
    widened = np.float32(4 * (scale - 1))
    return cast(FloatArray, np.maximum(np.maximum(horns, third), fourth) + widened)


def skull_depth(template: FloatArray) -> FloatArray:
    """Returns the depth in the skull and all it holds: a vault on a floor, lower behind and at the sides."""
    x, y, z = template
    vault = ellipsoid_depth(template, _CRANIUM_CENTRE, _CRANIUM_RADII)
    forwards = np.clip((y + 22) / 30, 0, 1)
    temporal_lobes = 16 * np.exp(-(((np.abs(x) - 36) / 16) ** 2) - ((y - 10) / 24) ** 2)
    floor = -66 + 36 * forwards**2 * (3 - 2 * forwards) - temporal_lobes
    return cast(FloatArray, np.minimum(vault, z - floor))


def hemispheres_depth(template: FloatArray) -> FloatArray:
    """Returns the depth in both hemispheres and the fluid in their furrows, as brain masks have it."""
    _, y, z = template
    # The occipital lobes rest on the tentorium, which rises to the front.
    above_tentorium = z + 22 + 0.6 * np.clip(y + 22, 0, None)
    return cast(FloatArray, np.minimum(skull_depth(template) - np.float32(_SKULL_MM + 2), above_tentorium))


def cortex_depth(template: FloatArray, folds: SmoothNoise) -> FloatArray:
    """Returns the depth in the hemispheres, less their furrows (zero set of a noise) and cleft."""
    x, _, z = template
    furrow = np.exp(-((folds(template) / 0.15) ** 2))
    # The cleft ends above the corpus callosum.
    cleft = np.exp(-((x / 2.0) ** 2)) * np.clip((z - 34) / 6, 0, 1)
    return cast(FloatArray, hemispheres_depth(template) - 14 * furrow - 26 * cleft)


def white_matter_depth(template: FloatArray, folds: SmoothNoise) -> FloatArray:
    """Returns the depth in white matter: what a cortex of even thickness leaves of the hemispheres."""
    along_furrows = np.exp(-((folds(template) / 0.45) ** 2))
    return cast(FloatArray, cortex_depth(template, folds) - 5.5 - 12 * along_furrows)


def _paint_face_and_neck(canvas: Canvas, template: FloatArray, folds: SmoothNoise) -> None:
    """Paints everything outside the skull: skin, fat, muscles between sheets of fat, eyes, airways, spine."""
    right = mirror_left_right(template)
    scalp = ellipsoid_depth(template, _CRANIUM_CENTRE, np.add(_CRANIUM_RADII, 7))
    face = ellipsoid_depth(template, (0, 42, -52), (56, 54, 64))
    neck = capsule_depth(template, (0, -18, -50), (0, -30, -140), 56, 54)
    nose = capsule_depth(template, (0, 88, -30), (0, 104, -62), 6, 13)
    head = smooth_union(smooth_union(scalp, smooth_union(face, neck, 20), 24), nose, 12)
    canvas.paint(head, MUSCLE)
    canvas.paint(head - 1.5, FAT)
    canvas.paint(head - 6.0, MUSCLE)
    canvas.paint(np.minimum(head - 6.0, 1.6 - 4 * np.abs(folds(template))), FAT)
    canvas.paint(ellipsoid_depth(right, (30, 62, -44), (20, 22, 18)), FAT)
    canvas.paint(ellipsoid_depth(right, (31, 70, -42), (12.5, 12.5, 12.5)), FLUID)
    canvas.paint(ellipsoid_depth(template, (0, 66, -62), (15, 30, 22)), AIR)
    canvas.paint(capsule_depth(template, (0, 34, -70), (0, 10, -140), 9, 9), AIR)
    spine = capsule_depth(template, (0, -14, -70), (0, -20, -140), 21, 21)
    canvas.paint(spine, BONE)
    canvas.paint(spine - 2, MARROW)


def _paint_skull(canvas: Canvas, template: FloatArray) -> None:
    """Paints the skull, marrow between its two tables, filled with fluid."""
    skull = skull_depth(template)
    canvas.paint(skull, BONE)
    canvas.paint(np.minimum(skull - 2, 6.5 - skull), MARROW)
    canvas.paint(skull - _SKULL_MM, FLUID)


def _paint_brain(
    canvas: Canvas, template: FloatArray, folds: SmoothNoise, texture: SmoothNoise
) -> FloatArray:
    """Paints hemispheres, cerebellum, brain stem and deep nuclei; returns the depth in all of them."""
    shade = np.float32(0.02) * texture(template)
    right = mirror_left_right(template)
    cerebellum = ellipsoid_depth(right, (20, -50, -38), (30, 27, 20))
    cord = capsule_depth(template, (0, -8, -8), (0, -22, -110), 13, 9)
    # The stem leaves the skull as the spinal cord, which is drawn but is no longer brain.
    stem = np.minimum(cord, template[2] + 62)
    below = np.maximum(cerebellum, stem)
    brain = np.maximum(hemispheres_depth(template), below)
    canvas.paint(cord + 4, FLUID)
    canvas.paint(cord, WHITE_MATTER)
    canvas.paint(brain, FLUID, BRAIN)
    canvas.paint(np.maximum(cortex_depth(template, folds), below), GREY_MATTER + shade)
    canvas.paint(white_matter_depth(template, folds), WHITE_MATTER + shade)
    leaves = np.float32(2.5) * np.cos(template[2] * np.float32(2 * np.pi / 9))
    canvas.paint(cerebellum - 6 + leaves, WHITE_MATTER + shade)
    canvas.paint(stem, WHITE_MATTER + shade)
    canvas.paint(ellipsoid_depth(right, (11, -8, 8), (9, 15, 9)), GREY_MATTER + shade)
    canvas.paint(ellipsoid_depth(right, (25, 8, 6), (7, 17, 10)), GREY_MATTER + shade)
    return cast(FloatArray, brain)
