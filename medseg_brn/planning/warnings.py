"""What a person should know before starting what was planned."""

import os
from contextlib import suppress

from medseg_brn.cases.fingerprint import Fingerprint
from medseg_brn.planning.machine import Machine
from medseg_brn.planning.prediction import tell_owner
from medseg_brn.planning.search import Found


def warn_of_classes(fingerprint: Fingerprint) -> list[str]:
    """Classes that cannot be learnt."""
    missing = [name for name, count in fingerprint.class_cases.items() if not count]
    missing = [name for name in missing if name != next(iter(fingerprint.class_voxels))]
    if not missing:
        return []
    return [f"no case has {', '.join(map(repr, missing))}: nothing can be learnt of what is never there"]


def warn_of_memory(found: Found, device: str) -> list[str]:
    """Memory that will not suffice, and why no less is planned for."""
    allowed = found.budget.memory_bytes
    trained = found.trial.training_memory_mb * 1e6 if found.trial else found.candidate.cost.memory_bytes
    peak = found.trial.peak_memory_mb * 1e6 if found.trial else trained
    if max(trained, peak) <= allowed:
        return []
    why = (
        "no smaller network is worth training"
        if trained > allowed
        else "training stays below, but validating the largest case does not"
    )
    needed = f"{max(trained, peak) / 1e9:.1f} GB {tell_owner(device)}"
    return [f"{needed} are needed, more than the {allowed / 1e9:.1f} GB allowed: {why}"]


def warn_of_measuring(found: Found, machine: Machine) -> list[str]:
    """Why the planned network was not measured, where it was not."""
    if found.trial is not None:
        return []
    if not machine.measured:
        return [
            f"not measured: there is no {machine.device} here, so time and memory follow from a rough model; "
            "plan again on the machine that will train"
        ]
    count, killed = len(found.trials), sum(trial.killed for trial in found.trials)
    if killed == count:
        told = "memory ran out in every trial"
    elif killed:
        told = f"memory ran out in {killed} of {count} trials, and the others were over the budgets"
    else:
        told = f"all {count} trials were over the budgets"
    return [
        f"not measured: {told}; what is planned is the next that should fit, or the smallest there is; give "
        "the run more memory or time, or try it with a few steps first"
    ]


def read_load() -> float | None:
    """Processes that run or wait to, on average over the last minute; None where the system does not tell."""
    with suppress(OSError, AttributeError):
        return os.getloadavg()[0]
    return None


def warn_of_load(load: float | None, cores: int) -> list[str]:
    """Other work on this machine, which makes measured times longer than they need be."""
    if load is None or load <= cores + 0.5:
        return []
    return [
        f"this machine was busy (load {load:.1f} on {cores} cores): alone, the run will be faster, and a "
        "plan made then may be larger"
    ]
