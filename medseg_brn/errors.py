"""The only errors a user sees: one message each, without a traceback.

A message says what is wrong, the values received, the rule, the place and the remedy.
"""


class MedsegError(Exception):
    """Base of every error that the command line tells in one message (exit code 1)."""


class ConfigError(MedsegError):
    """An option is unknown, mistyped, or does not go with another one."""


class DataError(MedsegError):
    """A file, a case or a dataset is not what it must be."""


class ModelError(MedsegError):
    """A model folder is missing, damaged, or does not fit what is asked of it."""


class TrainingError(MedsegError):
    """Training cannot go on: a NaN loss, a checkpoint of another experiment, and the like."""


class DivergenceError(TrainingError):
    """The loss, the gradient or the finished network's numbers are no longer finite."""


class ScoresError(ModelError):
    """A network's scores are NaN, so no class wins."""
