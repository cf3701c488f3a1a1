"""Inference beside nnU-Net and MONAI: agreement of plans, time, memory, Dice and grids.

    python tests/benchmarks/benchmark_inference.py SECTION... -o /tmp/inference [--peers PYTHON]
        [--repeats 3] [--threads 2] [--data FOLDER] [--hippocampus-run RUN]

Sections: invariance, command, monai, memory, hippocampus, real. Each prints a table and writes all raw
figures, versions and the machine's description to OUTPUT/SECTION.json. `command` and `monai` need nnunetv2
and MONAI: --peers names the Python of an environment that has them; else one is made at OUTPUT/peers with
the torch version of this environment. `hippocampus` needs --data and --hippocampus-run, a finished training
on fold 0 (`medseg-brn train hippocampus_mri`); `real` needs --data. Linux: memory is read from /proc.
"""

import argparse
import os
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import cast

from inference.context import Context, make_peers

SECTIONS: Mapping[str, tuple[str, str]] = {
    "invariance": ("inference.invariance", "run_section"),
    "command": ("inference.command", "run_section"),
    "monai": ("inference.monai_windows", "run_section"),
    "memory": ("inference.others", "run_memory"),
    "hippocampus": ("inference.others", "run_hippocampus"),
    "real": ("inference.others", "run_real"),
    "int8": ("inference.int8", "run_section"),
}
NEED_PEERS = {"command", "monai"}
NEED_DATA = {"hippocampus", "real"}
DATA = Path(__file__).parents[2].parent / "shared" / "data"


def main() -> None:
    """Parse the arguments and run the sections."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="+", choices=SECTIONS, metavar="SECTION")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--peers", type=Path, help="Python with nnunetv2 and MONAI")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("MEDSEG_BRN_DATA", DATA)))
    parser.add_argument("--hippocampus-run", type=Path)
    options = parser.parse_args()
    wanted = set(options.sections)
    if wanted & NEED_DATA and not options.data.is_dir():
        parser.error(f"--data {options.data} does not exist, and {wanted & NEED_DATA} need it")
    if "hippocampus" in wanted and options.hippocampus_run is None:
        parser.error("the section hippocampus needs --hippocampus-run")
    output = options.output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    peers = options.peers.absolute() if options.peers else None
    if wanted & NEED_PEERS and peers is None:
        peers = make_peers(output / "peers")
    context = Context(output, peers, options.repeats, options.threads, options.data, options.hippocampus_run)
    for name in options.sections:
        module, function = SECTIONS[name]
        cast(Callable[[Context], None], getattr(import_module(module), function))(context)


if __name__ == "__main__":
    main()
