"""The adversarial study: the leak in closed form, trained discriminators, and what they do to a segmenter."""

import dataclasses

from medseg_brn.studies.adversarial.arms import ARMS, WITHOUT
from medseg_brn.studies.adversarial.closed_form import Draw, do_draw
from medseg_brn.studies.adversarial.page import Shown, make_sections
from medseg_brn.studies.adversarial.segmenter import Recipe
from medseg_brn.studies.adversarial.shapes import SIZE
from medseg_brn.studies.adversarial.statements import Measurements, judge
from medseg_brn.studies.adversarial.trials import EXAMPLES, Found, Start, do_arm, do_start
from medseg_brn.studies.outcome import Outcome, Progress, do_all

SEEDS = 8
DRAWS, PAIRS = 20, 20_000
SEPARATIONS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)

QUESTION = (
    "A discriminator learns from real and fake items side by side. A norm that takes its statistics from "
    "their batch shows it how the two compare, which no single item shows: an advantage that is gone when "
    "one is judged alone. How large is this leak in closed form, how large in discriminators that were "
    "trained to tell references from predicted segmentations of small synthetic volumes, and what does the "
    "norm do to a segmenter that is refined against them?"
)


def study_adversarial(seed: int, scale: float, progress: Progress) -> Outcome:
    """Draw, train, measure and judge.

    Args:
        seed: draws everything.
        scale: times as many seeds and draws as the default, at least two of each; what would be fewer seeds
            than that shortens the trainings.
        progress: told how far it is.
    """
    seeds, draws = max(2, round(SEEDS * scale)), max(2, round(DRAWS * scale))
    recipe = Recipe().shorten(min(1.0, SEEDS * scale / 2))
    closed = do_all(
        do_draw, [Draw(number, seed, SEPARATIONS, PAIRS) for number in range(draws)], "Closed form", progress
    )
    starts = do_all(
        do_start, [Start(number, seed, recipe) for number in range(seeds)], "Segmenters", progress
    )
    work = [(start, arm) for start in starts for arm in (None, *ARMS)]
    done = do_all(do_arm, work, "Discriminators and refinements", progress)
    pieces: dict[str, list[Found]] = {}
    for (_, arm), piece in zip(work, done, strict=True):
        pieces.setdefault(WITHOUT if arm is None else arm.name, []).append(piece)
    rows = [row for part in closed for row in part] + [row for piece in done for row in piece.rows]
    found = Measurements(rows)
    return Outcome(
        study="adversarial",
        title="Adversarial training",
        question=QUESTION,
        settings={
            "seed": seed,
            "scale": scale,
            "seeds": seeds,
            "draws of the closed form": draws,
            "pairs in a draw": PAIRS,
            "separations": list(SEPARATIONS),
            "voxels along each axis": SIZE,
            **{name: _plain(value) for name, value in dataclasses.asdict(recipe).items()},
        },
        claims=judge(found),
        rows=rows,
        sections=make_sections(found, pieces, _choose_examples(starts[0], pieces)),
    )


def _choose_examples(start: Start, pieces: dict[str, list[Found]]) -> Shown:
    held_out = start.draw(2, EXAMPLES)
    middle = SIZE // 2
    return Shown(
        held_out.images[:, 0, :, :, middle].numpy(),
        held_out.classes[:, 0, :, :, middle].numpy() > 0,
        {name: found[0].shown for name, found in pieces.items()},
    )


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
