"""An abdomen as CT shows it, in Hounsfield units.

Fat, muscle, spine, ribs, vessels and bowel surround the three classes: liver, spleen and kidneys.
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

CLASS_NAMES = ("background", "liver", "spleen", "kidneys")
LIVER, SPLEEN, KIDNEYS = 1, 2, 3

# The box around an abdomen, left-right, back-front, down-up. +x is the patient's right, where the liver lies.
EXTENT_MM = (370.0, 290.0, 240.0)

# Hounsfield units before contrast agent. Bowel, muscle and the organs share a range, with and without it.
AIR, LUNG, FAT, BOWEL, FLUID = -1000.0, -850.0, -100.0, 35.0, 10.0
MUSCLE, DISC, TRABECULAR_BONE, CORTICAL_BONE = 55.0, 85.0, 190.0, 550.0
TABLE_FOAM, TABLE_SHELL = -900.0, 50.0
LIVER_HU, SPLEEN_HU, KIDNEY_HU, BLOOD_HU = 58.0, 48.0, 34.0, 42.0

# How many HU each gains at full contrast agent.
LIVER_GAIN, SPLEEN_GAIN, KIDNEY_GAIN, BLOOD_GAIN = 50.0, 70.0, 130.0, 120.0


@dataclass(frozen=True, eq=False)
class Abdomen:
    """One person's abdomen: everything that differs between people, and nothing of the scanner.

    Attributes:
        fat_mm: thickness of the fat under the skin.
        contrast: 0 without contrast agent, 1 with all of it.
        breath_mm: how far the diaphragm and the organs under it are pushed down.
    """

    deformation: Deformation
    bowel: SmoothNoise
    texture: SmoothNoise
    fat_mm: float
    contrast: float
    breath_mm: float

    def draw(self, points: FloatArray, edge_mm: float) -> Canvas:
        """Returns the abdomen's image (HU) and label map at points (3, X, Y, Z) in world mm."""
        template = self.deformation(points)
        canvas = Canvas(points.shape[1:], AIR, edge_mm)
        _paint_table(canvas, points)
        cavity = _paint_body_wall(canvas, template, self.fat_mm)
        upper = template + np.array([0, 0, self.breath_mm], np.float32).reshape(3, 1, 1, 1)
        _paint_bowel(canvas, template, cavity, self.bowel)
        _paint_spine_and_muscles(canvas, template)
        _paint_vessels(canvas, template, BLOOD_HU + BLOOD_GAIN * self.contrast)
        self._paint_organs(canvas, upper, cavity)
        _paint_chest(canvas, upper, cavity, BLOOD_HU + BLOOD_GAIN * self.contrast)
        return canvas

    def _paint_organs(self, canvas: Canvas, upper: FloatArray, cavity: FloatArray) -> None:
        grain = np.float32(3) * self.texture(upper)
        blood = BLOOD_HU + BLOOD_GAIN * self.contrast
        liver = np.minimum(liver_depth(upper), cavity - 1)
        stomach = np.minimum(ellipsoid_depth(upper, (-62, 38, 40), (42, 36, 50), (0, 15, 0)), cavity - 2)
        canvas.paint(stomach, MUSCLE + 20 * self.contrast)
        canvas.paint(stomach - 4, FLUID + 15)
        canvas.paint(np.minimum(stomach - 4, upper[1] - 56), AIR + 30)
        canvas.paint(liver, LIVER_HU + LIVER_GAIN * self.contrast + grain, LIVER)
        # Veins are part of the liver; they show as thin sheets, brighter with the contrast agent.
        veins = 3.0 - 22 * np.abs(self.bowel(upper * np.float32(0.8)))
        canvas.paint(np.minimum(veins, liver - 10), (blood + LIVER_HU + LIVER_GAIN * self.contrast) / 2)
        canvas.paint(ellipsoid_depth(upper, (46, 52, -4), (14, 17, 27), (0, 20, 0)), FLUID, 0)
        spleen = np.minimum(spleen_depth(upper), cavity - 1)
        canvas.paint(spleen, SPLEEN_HU + SPLEEN_GAIN * self.contrast + grain, SPLEEN)
        kidney, sinus = kidney_depths(upper)
        canvas.paint(kidney + 5, FAT)
        bright = KIDNEY_HU + KIDNEY_GAIN * self.contrast
        canvas.paint(kidney, bright + grain, KIDNEYS)
        canvas.paint(kidney - 8, bright - 25 * self.contrast + grain)
        canvas.paint(sinus, FAT + 40, 0)


def sample_abdomen(rng: np.random.Generator) -> Abdomen:
    """Returns a random abdomen; contrast agent in three of four."""
    deformation = sample_deformation(
        rng, scale_sd=0.06, rotation_sd_degrees=3, amplitude_mm=4.0, wavelength_mm=170
    )
    bowel, texture = sample_noise(rng, 55, 12), sample_noise(rng, 30, 8)
    with_agent = rng.uniform() < 0.75
    contrast = float(rng.uniform(0.5, 1.0)) if with_agent else 0.0
    return Abdomen(
        deformation,
        bowel,
        texture,
        float(rng.uniform(10, 26)),
        contrast,
        breath_mm=float(rng.uniform(-12, 12)),
    )


def liver_depth(template: FloatArray) -> FloatArray:
    """Returns the depth in the liver: a large right lobe, and a flat left one across the midline."""
    right = ellipsoid_depth(template, (72, 2, 32), (62, 82, 78), (0, -14, 0))
    left = ellipsoid_depth(template, (2, 46, 52), (72, 38, 34), (0, 10, 0))
    kidney_bed = ellipsoid_depth(template, (62, -58, -16), (40, 36, 64))
    return cast(FloatArray, np.minimum(smooth_union(right, left, 20), -kidney_bed))


def spleen_depth(template: FloatArray) -> FloatArray:
    """Returns the depth in the spleen: a crescent behind the stomach, along the left ribs."""
    bean = ellipsoid_depth(template, (-100, -34, 34), (34, 50, 56), (20, -10, 0))
    hollow = ellipsoid_depth(template, (-72, -14, 34), (28, 40, 52))
    return cast(FloatArray, np.minimum(bean, -hollow))


def kidney_depths(template: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Returns the depths in both kidneys, the right one lower, and in the fat at their inner sides."""
    lowered = template + np.array([0, 0, 8], np.float32).reshape((3,) + (1,) * (template.ndim - 1)) * (
        template[:1] > 0
    )
    right = mirror_left_right(lowered)
    kidney = ellipsoid_depth(right, (62, -50, -12), (29, 25, 54), (12, 12, -25))
    sinus = ellipsoid_depth(right, (46, -42, -12), (17, 9, 20), (12, 12, -25))
    return kidney, sinus


def _paint_table(canvas: Canvas, points: FloatArray) -> None:
    """The table belongs to the scanner's world, not to the deformed body."""
    x, y, _ = points
    top = -128 + x**2 / 900
    slab = np.minimum(np.minimum(top - y, y - (top - 22)), 190 - np.abs(x))
    canvas.paint(slab, TABLE_SHELL)
    canvas.paint(slab - 3, TABLE_FOAM)


def _paint_body_wall(canvas: Canvas, template: FloatArray, fat_mm: float) -> FloatArray:
    """Paints skin, fat, muscle wall, ribs and the fat inside; returns the depth in the abdominal cavity."""
    x, y, z = template
    body = ellipsoid_depth(template, (0, 0, 0), (166, 118, np.inf))
    # A back lies flat on its table, with a groove along the spine.
    body = smooth_union(body, np.minimum(body + 8, 96 - np.abs(x)), 10) - 7 * np.exp(-((x / 16) ** 2)) * (
        y < 0
    )
    canvas.paint(body, FLUID)
    canvas.paint(body - 2, FAT)
    wall = body - np.float32(fat_mm)
    canvas.paint(wall, MUSCLE)
    # Ribs run obliquely downwards to the front, above a costal arch that rises towards the midline.
    slant = z + 0.45 * y
    band = 6 - np.abs((slant + 11) % 30 - 15)
    behind_arch = z - (-30 + 0.9 * np.clip(y, 0, None))
    ribs = np.minimum(np.minimum(wall - 2, 10 - wall), np.minimum(band, behind_arch))
    canvas.paint(ribs, CORTICAL_BONE)
    canvas.paint(ribs - 3, TRABECULAR_BONE)
    cavity = wall - 13
    canvas.paint(cavity, FAT)
    return cast(FloatArray, cavity)


def _paint_bowel(canvas: Canvas, template: FloatArray, cavity: FloatArray, bowel: SmoothNoise) -> None:
    """Paints loops of bowel: wall, contents and, in the fullest, gas that has risen to the front."""
    _, y, z = template
    # Loops fill where the noise lies between two levels, cut by the zero set of the same noise seen sideways.
    fullness = bowel(template)
    furrow = np.exp(-((bowel(template[[1, 2, 0]]) / 0.12) ** 2))
    loops = 9 * np.minimum(fullness + 0.1, 2.4 - fullness) - 8 * furrow
    room = np.minimum(cavity - 4, np.minimum(y + 14, 26 - z))
    loops = np.minimum(loops, room)
    canvas.paint(loops, BOWEL + 25)
    canvas.paint(loops - 3, BOWEL - 15)
    canvas.paint(np.minimum(np.minimum(loops - 6, y - 38), 5 * (fullness - 0.9)), AIR + 60)


def _paint_spine_and_muscles(canvas: Canvas, template: FloatArray) -> None:
    x, y, z = template
    right = mirror_left_right(template)
    canvas.paint(ellipsoid_depth(right, (36, -82, 0), (32, 21, np.inf)), MUSCLE)
    canvas.paint(capsule_depth(right, (28, -48, 10), (52, -36, -150), 12, 24), MUSCLE)
    column = ellipsoid_depth(template, (0, -52, 0), (24, 19, np.inf))
    # A vertebra and its disc repeat every 36 mm; the disc takes 9 mm of it.
    vertebra = np.minimum(column, 13.5 - np.abs(z % 36 - 18))
    canvas.paint(column, DISC)
    canvas.paint(vertebra, CORTICAL_BONE)
    canvas.paint(vertebra - 2.5, TRABECULAR_BONE)
    arch = ellipsoid_depth(template, (0, -79, 0), (17, 14, np.inf))
    level = 15 - np.abs(z % 36 - 14)
    processes = np.maximum(np.minimum(4 - np.abs(x), np.minimum(y + 112, -84 - y)), arch)
    sideways = np.minimum(np.minimum(5 - np.abs(y + 77), right[0] - 8), 40 - right[0])
    canvas.paint(np.minimum(np.maximum(processes, sideways), level), CORTICAL_BONE)
    canvas.paint(ellipsoid_depth(template, (0, -77, 0), (11, 9, np.inf)), FLUID + 15)


def _paint_vessels(canvas: Canvas, template: FloatArray, blood_hu: float) -> None:
    canvas.paint(capsule_depth(template, (-9, -18, 160), (-5, -20, -160), 12, 10), blood_hu + 15)
    canvas.paint(capsule_depth(template, (20, -16, 160), (16, -20, -160), 13, 11), blood_hu - 10)


def _paint_chest(canvas: Canvas, template: FloatArray, cavity: FloatArray, blood_hu: float) -> None:
    """Paints the lungs above the two domes of the diaphragm, and the heart between them."""
    x, y, z = mirror_left_right(template)
    dome = 92 - ((x - 70) / 9) ** 2 - ((y - 5) / 9) ** 2
    above = np.minimum(np.minimum((z - dome) / 2, cavity), x - 30)
    canvas.paint(above, LUNG, 0)
    heart = np.minimum(ellipsoid_depth(template, (-16, 34, 128), (62, 46, 42), (0, 12, 0)), cavity - 3)
    canvas.paint(heart, blood_hu, 0)
