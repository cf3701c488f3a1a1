"""Verdicts on made-up grids whose answers are known."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from medseg_brn.comparison.claims import QUESTIONS, Verdict, judge
from medseg_brn.comparison.results import RunResult
from medseg_brn.comparison.statistics import adjust_holm, compare_spreads, estimate_mean
from medseg_brn.errors import DataError

CASES = 20


def make_run(norm: str, batch_size: int, seed: int, level: float, input_name: str = "zscored") -> RunResult:
    """A run whose Dice is `level` but for what its cases and its seed add, alike for all norms, and noise."""
    shared = np.random.default_rng(0).normal(0, 0.05, CASES) + 0.02 * math.sin(seed)
    noise = np.random.default_rng([len(norm), batch_size, seed]).normal(0, 0.005, CASES)
    dice = level + shared + noise
    return RunResult(
        name=f"{norm}-b{batch_size}-{input_name}-s{seed}",
        input=input_name,
        norm=norm,
        batch_size=batch_size,
        seed=seed,
        status="finished",
        dice=float(dice.mean()),
        case_dice={f"p{case:02}": float(value) for case, value in enumerate(dice)},
        measurements={"train_eval_disparity": 0.1 * (1 - level) + 0.001 * seed, "tile_mismatch": 0.01},
    )


def make_grid(levels: Mapping[str, Mapping[int, float]], seeds: int = 4) -> list[RunResult]:
    """Runs of every norm and batch size; `levels` gives their Dice."""
    return [
        make_run(norm, batch_size, seed, level)
        for norm, by_batch_size in levels.items()
        for batch_size, level in by_batch_size.items()
        for seed in range(seeds)
    ]


def select(verdicts: list[Verdict], question: str, **values: object) -> Verdict:
    """The one verdict of a question with these values."""
    found = [
        verdict
        for verdict in verdicts
        if verdict.question == question
        and all(getattr(verdict, key) == value for key, value in values.items())
    ]
    assert len(found) == 1
    return found[0]


def diverge(run: RunResult) -> RunResult:
    """The run as it is reported when its loss becomes NaN."""
    return replace(run, status="diverged", error="NaN loss", dice=0.0, case_dice={}, measurements={})


BETTER = {"batch": {1: 0.6, 2: 0.7}, "batch_renorm": {1: 0.8, 2: 0.8}, "group": {1: 0.8, 2: 0.8}}


def test_rounding_is_no_difference() -> None:
    """Renorm's disparity is some 1e-9 where GroupNorm's is exactly 0."""
    runs = [
        replace(make_run(norm, 1, seed, 0.8), measurements={"train_eval_disparity": disparity})
        for norm, disparity in (("batch_renorm", 3e-9), ("group", 0.0))
        for seed in range(5)
    ]
    verdict = select(judge(runs), "disparity")
    assert (verdict.effect, verdict.p, verdict.conclusion) == (0, 1, "not distinguishable")


class TestFamily:
    def test_claims_follow_from_the_grid(self) -> None:
        """Two others at two batch sizes: four claims per question, and a slope for each of three norms."""
        verdicts = judge(make_grid(BETTER))
        counts = {question: sum(v.question == question for v in verdicts) for question in QUESTIONS}
        assert counts == {"dice": 4, "disparity": 4, "tile_mismatch": 4, "spread": 4, "batch_size_slope": 3}

    def test_holm_runs_over_each_question(self) -> None:
        verdicts = judge(make_grid(BETTER))
        for question in QUESTIONS:
            family = [verdict for verdict in verdicts if verdict.question == question]
            assert [v.p_adjusted for v in family] == adjust_holm([v.p for v in family])

    def test_questions_come_one_after_the_other(self) -> None:
        assert tuple(dict.fromkeys(verdict.question for verdict in judge(make_grid(BETTER)))) == QUESTIONS

    def test_inputs_are_compared_apart(self) -> None:
        runs = make_grid(BETTER)
        raw = [replace(run, name=f"{run.name}-raw", input="raw") for run in runs]
        assert len(judge(runs + raw)) == 2 * len(judge(runs))

    def test_absent_reference_gives_way_to_the_first_norm(self) -> None:
        verdicts = judge(make_grid({"group": {1: 0.8}, "batch": {1: 0.6}}))
        assert select(verdicts, "dice").norm == "group"

    def test_another_reference(self) -> None:
        verdicts = judge(make_grid(BETTER), reference="group")
        assert {v.norm for v in verdicts if v.question == "dice"} == {"group"}

    def test_nothing_to_judge(self) -> None:
        assert judge([]) == []
        assert judge([replace(run, status="failed") for run in make_grid(BETTER)]) == []

    def test_a_seed_counts_once(self) -> None:
        runs = make_grid(BETTER)
        with pytest.raises(DataError, match="both seed 0 of batch"):
            judge([*runs, runs[0]])


class TestDice:
    def test_higher(self) -> None:
        verdict = select(judge(make_grid(BETTER)), "dice", other="batch", batch_size=1)
        assert verdict.claim == "batch_renorm has a higher Dice than batch at batch size 1 (zscored)"
        assert verdict.effect == pytest.approx(0.2, abs=0.01)
        assert verdict.interval is not None
        assert verdict.interval[0] < 0.2 < verdict.interval[1]
        assert verdict.conclusion == f"batch_renorm higher by {verdict.effect:.3g}"

    def test_lower(self) -> None:
        worse = {"batch_renorm": {1: 0.6}, "instance": {1: 0.8}}
        assert select(judge(make_grid(worse)), "dice").conclusion == "batch_renorm lower by 0.199"

    def test_not_distinguishable(self) -> None:
        verdict = select(judge(make_grid(BETTER)), "dice", other="group", batch_size=1)
        assert verdict.p_adjusted >= 0.05
        assert verdict.conclusion == "not distinguishable"

    def test_only_seeds_of_both_are_paired(self) -> None:
        runs = make_grid({"batch_renorm": {1: 0.8}, "batch": {1: 0.6}}, seeds=5)
        ours, theirs = runs[:5], runs[5:]
        verdict = select(judge([*ours[1:], *reversed(theirs[:4])]), "dice")
        rows = [
            [one.case_dice[case] - other.case_dice[case] for case in sorted(one.case_dice)]  # type: ignore[operator]
            for one, other in zip(ours[1:4], theirs[1:4], strict=True)
        ]
        assert verdict.p == pytest.approx(estimate_mean(np.array(rows)).p)

    def test_failed_runs_are_left_out(self) -> None:
        runs = make_grid({"batch_renorm": {1: 0.8}, "batch": {1: 0.6}}, seeds=5)
        failed = replace(runs[0], status="failed", dice=None, case_dice={})
        assert judge([failed, *runs[1:]]) == judge(runs[1:])

    def test_diverged_runs_count_as_zero(self) -> None:
        runs = make_grid({"batch_renorm": {1: 0.8}, "batch": {1: 0.8}})
        verdict = select(judge([*runs[:4], *map(diverge, runs[4:])]), "dice")
        assert verdict.effect == pytest.approx(np.mean([run.dice for run in runs[:4]]))

    def test_both_diverged(self) -> None:
        """Their cases are those of the runs at another batch size."""
        runs = make_grid({"batch_renorm": {1: 0.8, 2: 0.8}, "batch": {1: 0.8, 2: 0.8}})
        runs = [diverge(run) if run.batch_size == 1 else run for run in runs]
        verdict = select(judge(runs), "dice", batch_size=1)
        assert (verdict.effect, verdict.interval, verdict.p) == (0, (0, 0), 1)

    def test_one_seed_distinguishes_nothing(self) -> None:
        """However large the effect is over the cases: the interval excludes 0, and there is no p."""
        verdict = select(judge(make_grid({"batch_renorm": {1: 0.8}, "batch": {1: 0.6}}, seeds=1)), "dice")
        assert verdict.effect == pytest.approx(0.2, abs=0.01)
        assert verdict.interval is not None
        assert verdict.interval[0] > 0.15
        assert math.isnan(verdict.p)
        assert math.isnan(verdict.p_adjusted)
        assert verdict.conclusion == "not distinguishable (one seed: the interval is for other cases only)"


class TestMeasurements:
    def test_disparity_is_paired_over_seeds(self) -> None:
        """Disparity is 0.1·(1 − level) and the same amount per seed, so its difference does not vary."""
        verdict = select(judge(make_grid(BETTER)), "disparity", other="batch", batch_size=1)
        assert verdict.effect == pytest.approx(-0.02)
        assert verdict.conclusion == "batch_renorm lower by 0.02"

    def test_equal_mismatch(self) -> None:
        verdict = select(judge(make_grid(BETTER)), "tile_mismatch", other="batch", batch_size=1)
        assert (verdict.effect, verdict.p, verdict.conclusion) == (0, 1, "not distinguishable")

    def test_seeds_without_it_are_told(self) -> None:
        runs = make_grid({"batch_renorm": {1: 0.8}, "batch": {1: 0.6}})
        verdict = select(judge([*runs[:-1], diverge(runs[-1])]), "disparity")
        assert verdict.conclusion.endswith("(3 of 4 seeds have it)")

    def test_a_norm_without_it_makes_no_claim(self) -> None:
        runs = [replace(run, measurements={}) for run in make_grid(BETTER)]
        assert {v.question for v in judge(runs)} == set(QUESTIONS) - {"disparity", "tile_mismatch"}

    def test_one_seed_cannot_be_tested(self) -> None:
        verdict = select(
            judge(make_grid({"batch_renorm": {1: 0.8}, "batch": {1: 0.6}}, seeds=1)), "disparity"
        )
        assert math.isnan(verdict.p_adjusted)
        assert verdict.interval is None
        assert verdict.conclusion == "not distinguishable (one seed: it cannot be tested)"


class TestSpread:
    def make_spread(self, ours: list[float], theirs: list[float]) -> Verdict:
        runs = [
            replace(make_run(norm, 1, seed, 0.5), dice=dice)
            for norm, values in (("batch_renorm", ours), ("batch", theirs))
            for seed, dice in enumerate(values)
        ]
        return select(judge(runs), "spread")

    def test_smaller(self) -> None:
        ours, theirs = [0.8, 0.81, 0.79, 0.8, 0.82, 0.8], [0.9, 0.2, 0.85, 0.1, 0.8, 0.15]
        verdict = self.make_spread(ours, theirs)
        assert verdict.effect == pytest.approx(np.std(ours, ddof=1) - np.std(theirs, ddof=1))
        assert verdict.p == pytest.approx(compare_spreads([np.array(ours), np.array(theirs)]))
        assert verdict.interval is None
        assert verdict.conclusion.startswith("batch_renorm lower by 0.3")

    def test_one_seed_says_nothing(self) -> None:
        verdict = self.make_spread([0.8], [0.7, 0.6, 0.1])
        assert math.isnan(verdict.effect)
        assert verdict.conclusion == "not distinguishable (one seed: nothing can be said of the spread)"

    @pytest.mark.parametrize("seeds", [2, 3])
    def test_too_few_seeds_are_told(self, seeds: int) -> None:
        verdict = self.make_spread([0.8, 0.81, 0.8][:seeds], [0.9, 0.1, 0.5][:seeds])
        assert verdict.conclusion == f"not distinguishable ({seeds} seeds are too few for this test)"


class TestBatchSizeSlope:
    LEVELS = {"batch": {1: 0.5, 2: 0.6, 4: 0.7}, "batch_renorm": {1: 0.8, 2: 0.8, 4: 0.8}}  # noqa: RUF012

    def test_rises(self) -> None:
        verdict = select(judge(make_grid(self.LEVELS)), "batch_size_slope", norm="batch")
        assert verdict.claim == "Dice of batch changes with the batch size (zscored)"
        assert verdict.effect == pytest.approx(0.1, abs=0.005)
        size = f"{verdict.effect:.3g}"
        assert verdict.conclusion == f"Dice rises by {size} with each doubling of the batch size"
        assert (verdict.other, verdict.batch_size) == (None, None)

    def test_steady(self) -> None:
        verdict = select(judge(make_grid(self.LEVELS)), "batch_size_slope", norm="batch_renorm")
        assert verdict.conclusion == "not distinguishable"

    def test_effect_is_the_mean_slope_of_the_seeds(self) -> None:
        runs = make_grid(self.LEVELS)
        slopes = []
        for seed in range(4):
            members = [run for run in runs if (run.norm, run.seed) == ("batch", seed)]
            slopes.append(stats.linregress([0, 1, 2], [run.dice for run in members]).slope)
        verdict = select(judge(runs), "batch_size_slope", norm="batch")
        assert verdict.effect == pytest.approx(np.mean(slopes))

    def test_falls(self) -> None:
        falling = {"batch_renorm": {1: 0.8, 2: 0.7, 4: 0.6}}
        conclusion = select(judge(make_grid(falling)), "batch_size_slope").conclusion
        assert conclusion.startswith("Dice falls by 0.1")

    def test_one_seed_distinguishes_nothing(self) -> None:
        verdict = select(judge(make_grid(self.LEVELS, seeds=1)), "batch_size_slope", norm="batch")
        assert math.isnan(verdict.p_adjusted)
        assert verdict.conclusion == "not distinguishable (one seed: the interval is for other cases only)"

    def test_a_seed_of_one_batch_size_does_not_count(self) -> None:
        runs = make_grid({"batch_renorm": {1: 0.7, 2: 0.8}})
        alone = make_run("batch_renorm", 1, 4, 0.1)
        assert judge([*runs, alone]) == judge(runs)

    def test_one_batch_size_has_no_slope(self) -> None:
        verdicts = judge(make_grid({"batch_renorm": {1: 0.8}, "batch": {1: 0.6}}))
        assert "batch_size_slope" not in {verdict.question for verdict in verdicts}


class TestVerdict:
    def test_as_json(self) -> None:
        verdict = select(judge(make_grid(BETTER, seeds=1)), "spread", other="batch", batch_size=2)
        entries = json.loads(json.dumps(verdict.as_dict(), allow_nan=False))
        assert entries == {
            "claim": "batch_renorm has a smaller spread of Dice than batch at batch size 2 (zscored)",
            "question": "spread",
            "norm": "batch_renorm",
            "other": "batch",
            "batch_size": 2,
            "input": "zscored",
            "effect": None,
            "interval": None,
            "p": None,
            "p_adjusted": None,
            "conclusion": "not distinguishable (one seed: nothing can be said of the spread)",
        }

    def test_interval_is_a_list(self) -> None:
        verdict = select(judge(make_grid(BETTER)), "dice", other="batch", batch_size=1)
        assert verdict.as_dict()["interval"] == list(verdict.interval or ())

    @pytest.mark.slow
    def test_false_findings_are_rare(self) -> None:
        """All norms alike: no more than 5 % of the grids show any Dice different, chance allowed for."""
        rng = np.random.default_rng(0)
        grids, found = 400, 0
        grid = make_grid({norm: {1: 0.5, 2: 0.5} for norm in ("batch_renorm", "batch", "group")}, seeds=3)
        for _ in range(grids):
            runs = []
            for run in grid:
                noise = rng.normal(0, 0.1) + rng.normal(0, 0.1, CASES)
                case_dice: dict[str, float | None] = dict(zip(run.case_dice, 0.5 + noise, strict=True))
                runs.append(replace(run, case_dice=case_dice, measurements={}))
            dice = [verdict for verdict in judge(runs) if verdict.question == "dice"]
            found += any(verdict.p_adjusted < 0.05 for verdict in dice)
        assert stats.binomtest(found, grids, 0.05, alternative="greater").pvalue > 0.01
