"""Programs of torch.export: one .pt2 file that `torch.export.load` reads with torch alone.

TorchScript, the older form, is deprecated in torch and not maintained for newer versions of Python. The newer
one is read by the version of torch that wrote it, and, as torch warns, perhaps not by others.
"""

import io
import json
from pathlib import Path

import torch
from torch.export import Dim, ExportedProgram

from medseg_brn.models.exporting.contents import describe_contents
from medseg_brn.models.exporting.exportable import Agreement, Exportable, check_agreement
from medseg_brn.volumes.atomic import atomic_path

CONTENTS_NAME = "medseg_brn.json"


def write_torch(exportable: Exportable, path: Path) -> Agreement:
    """Write the network as a .pt2 file, whole or not at all, after it was read again and has been run.

    `torch.export.load(path).module()` takes an image (N, C, X, Y, Z) and gives logits: of any N, and of sizes
    that are multiples of the network's strides, with two voxels or more at its coarsest level. What they mean
    is told in the extra file `medseg_brn.json`.

    Raises:
        ModelError: the program gives other logits than the trained network.
        DataError: the place cannot be written to.
    """
    program = make_program(exportable)
    contents = json.dumps(describe_contents(exportable), indent=2, ensure_ascii=False)
    file = io.BytesIO()  # written to a file, the archive would bear its temporary name
    torch.export.save(program, file, extra_files={CONTENTS_NAME: contents})
    file.seek(0)
    loaded = torch.export.load(file).module()
    agreement = check_agreement(lambda image: loaded(torch.from_numpy(image)).numpy(), exportable, path)
    with atomic_path(path) as temporary:
        temporary.write_bytes(file.getbuffer())
    return agreement


def make_program(exportable: Exportable) -> ExportedProgram:
    """Return the network as a program whose batch and sizes are free."""
    # Free sizes must differ from 1 and from each other here, or torch takes them for fixed or equal.
    sizes = (steps * stride for steps, stride in zip((2, 3, 4), exportable.strides_total, strict=True))
    image = torch.zeros(2, exportable.description.in_channels, *sizes)
    free = dict.fromkeys((0, 2, 3, 4), Dim.DYNAMIC)
    program = torch.export.export(exportable.network, (image,), dynamic_shapes=(free,))
    program.example_inputs = None  # would be stored as a pickle; a reader has no use for zeros
    return program
