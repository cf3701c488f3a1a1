"""The command line's frame, as real processes: help, exit codes, one message per error."""

import subprocess
import sys

import pytest

from medseg_brn.experiment import shipped_comparisons, shipped_configs

COMMANDS = ("demo", "check", "train", "infer", "evaluate", "config", "doctor")


def run(*arguments: object, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "medseg_brn", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_help_names_every_command():
    shown = run("--help")
    assert shown.returncode == 0
    assert all(command in shown.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(command):
    shown = run(command, "--help", env={"TERM": "dumb", "COLUMNS": "120", "PATH": ""})
    assert shown.returncode == 0
    assert "Usage:" in shown.stdout
    assert "medseg-brn" in shown.stdout


@pytest.mark.parametrize("arguments", [("trian",), ("train",), ("train", "demo"), ("infer", "model")])
def test_wrong_usage_exits_with_2(arguments):
    shown = run(*arguments)
    assert shown.returncode == 2
    assert "Traceback" not in shown.stderr


def test_an_error_is_one_message_on_stderr_and_exit_code_1(tmp_path):
    shown = run("config", "nosuch")
    assert shown.returncode == 1
    assert shown.stdout == ""
    assert shown.stderr.startswith("medseg-brn: No experiment 'nosuch'")
    assert "Traceback" not in shown.stderr


def test_a_mistake_in_an_override_leaves_no_run_folder(tmp_path):
    shown = run("train", "demo", "-o", tmp_path / "run", "-s", "training.step=3")
    assert shown.returncode == 1
    assert "did you mean 'steps'" in shown.stderr
    assert list(tmp_path.iterdir()) == []


def test_config_lists_prints_and_describes():
    listed = run("config")
    assert [line.split()[0] for line in listed.stdout.splitlines()] == [
        path.stem for path in (*shipped_configs(), *shipped_comparisons())
    ]
    assert "batch_sizes: [1, 2, 3, 4]" in run("config", "compare_smoke").stdout
    printed = run("config", "demo", "-s", "training.steps=7")
    assert "steps: 7" in printed.stdout
    assert run("config", "--schema").stdout.startswith("{")


def test_the_version_is_the_package_s():
    from importlib.metadata import version

    assert run("--version").stdout.strip() == version("medseg-brn")
