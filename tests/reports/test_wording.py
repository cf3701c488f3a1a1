"""Durations and sizes, by hand."""

from medseg_brn.reports.wording import tell_duration, times


def test_durations_are_told_as_people_say_them():
    told = [tell_duration(value) for value in (0.25, 42, 99.4, 420, 7200)]
    assert told == ["0.25 s", "42 s", "99 s", "7 min", "2.0 h"]


def test_sizes_are_told_as_people_write_them():
    assert times((1.0, 1, 2.5)) == "1 × 1 × 2.5"
    assert times((12345, 0.00125)) == "12345 × 0.00125", "not 1.234e+04"
