"""Run folders: opened once, continued only by the same experiment."""

import pytest

from medseg_brn.config import Experiment
from medseg_brn.errors import ConfigError
from medseg_brn.experiment import load_experiment
from medseg_brn.training.folder import open_run_folder


def change(experiment: Experiment, section: str, **options) -> Experiment:
    return experiment.model_copy(update={section: getattr(experiment, section).model_copy(update=options)})


def test_a_new_folder_holds_the_resolved_config(tmp_path):
    experiment = change(Experiment(), "training", steps=7)
    open_run_folder(experiment, tmp_path / "deep" / "run", resume=False)
    assert load_experiment(tmp_path / "deep" / "run" / "config.yaml") == experiment


def test_a_run_is_never_overwritten(tmp_path):
    open_run_folder(Experiment(), tmp_path / "run", resume=False)
    with pytest.raises(ConfigError, match=r"already holds a run.*--resume"):
        open_run_folder(Experiment(), tmp_path / "run", resume=False)


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        open_run_folder(Experiment(), tmp_path, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_what_a_kill_left_before_the_first_file_is_no_run(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".0123456789ab-config.yaml").write_text("half")
    open_run_folder(Experiment(), tmp_path / "run", resume=False)
    assert (tmp_path / "run" / "config.yaml").is_file()


def test_resume_may_extend_a_run_but_not_change_it(tmp_path):
    folder = tmp_path / "run"
    experiment = Experiment()
    open_run_folder(experiment, folder, resume=False)
    longer = change(experiment, "training", steps=experiment.training.steps + 1)
    open_run_folder(longer, folder, resume=True)
    with pytest.raises(ConfigError, match=r"training\.steps 2000 is below the 2001"):
        open_run_folder(experiment, folder, resume=True)
    other = change(longer, "training", batch_size=4)
    with pytest.raises(ConfigError, match=r"training\.batch_size \(2 → 4\)"):
        open_run_folder(other, folder, resume=True)
    assert load_experiment(folder / "config.yaml") == longer


def test_switching_augmentation_off_is_another_experiment(tmp_path):
    open_run_folder(Experiment(), tmp_path / "run", resume=False)
    with pytest.raises(ConfigError, match=r"patches\.augmentation"):
        open_run_folder(change(Experiment(), "patches", augmentation=None), tmp_path / "run", resume=True)


def test_resume_may_change_the_learning_rate_but_not_whose_it_is(tmp_path):
    open_run_folder(Experiment(), tmp_path / "run", resume=False)
    open_run_folder(change(Experiment(), "training", learning_rate=0.5), tmp_path / "run", resume=True)
    frozen = change(Experiment(), "training", learning_rate_factors={"stem": 0.0})
    with pytest.raises(ConfigError, match="learning_rate_factors"):
        open_run_folder(frozen, tmp_path / "run", resume=True)
