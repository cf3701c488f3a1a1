"""What a network learns from prepared label maps: exclusive classes, or regions that may overlap.

Class k of a prepared label map is called `class_names[k]`, class 0 being the background. Voxels that nobody
annotated have the class `ignore_class`, one above all others, where the dataset has such a label.
"""

from dataclasses import dataclass

import numpy as np

REGION_THRESHOLD = 0.5


@dataclass(frozen=True)
class Region:
    """A structure that covers several classes, and may overlap with other regions.

    Attributes:
        name: what it is called.
        classes: of the label maps that it covers, ascending.
        written_class: where a label map is written, its voxels get this class, unless a later region of the
            list covers them too.
    """

    name: str
    classes: tuple[int, ...]
    written_class: int


@dataclass(frozen=True)
class Targets:
    """The structures that a network is trained for.

    Attributes:
        class_names: of the label maps, background first; without the ignore label.
        regions: what is learnt instead of the classes; empty where the classes themselves are learnt.
        ignore_class: class of the voxels that are left out of the loss and of every metric, or None.
    """

    class_names: tuple[str, ...]
    regions: tuple[Region, ...] = ()
    ignore_class: int | None = None

    @property
    def num_classes(self) -> int:
        """Classes of the label maps, the background counted, the ignore label not."""
        return len(self.class_names)

    @property
    def num_outputs(self) -> int:
        """Channels of the network's logits: one per region (sigmoid), else one per class (softmax)."""
        return len(self.regions) or self.num_classes

    @property
    def structure_names(self) -> tuple[str, ...]:
        """What is segmented and evaluated: the regions, or the classes without the background."""
        return tuple(self.structures)

    @property
    def structures(self) -> dict[str, tuple[int, ...]]:
        """Name -> classes that it covers, of all that is segmented and evaluated."""
        if self.regions:
            return {region.name: region.classes for region in self.regions}
        return {name: (index,) for index, name in enumerate(self.class_names[1:], 1)}

    def members(self) -> np.ndarray:
        """Which classes each channel of the logits stands for: (num_outputs, classes) bool.

        The last of the classes is the ignore class, which belongs to no channel, where there is one.
        """
        covered = [region.classes for region in self.regions] or [(k,) for k in range(self.num_classes)]
        table = np.zeros((len(covered), max(self.num_classes, 1 + (self.ignore_class or 0))), np.bool_)
        for channel, classes in enumerate(covered):
            table[channel, list(classes)] = True
        return table

    def decide(self, scores: np.ndarray) -> np.ndarray:
        """Classes (…) of the network's scores (K, …), whatever their other axes.

        Exclusive classes: the one with the largest score wins, the lower of equals. Regions, whose scores are
        probabilities: each in its order gives its written class to the voxels where it has more than 1/2;
        those that get none are background.
        """
        if not self.regions:
            return scores.argmax(0)
        classes = np.zeros(scores.shape[1:], np.intp)
        for region, probability in zip(self.regions, scores, strict=True):
            classes[probability > REGION_THRESHOLD] = region.written_class
        return classes
