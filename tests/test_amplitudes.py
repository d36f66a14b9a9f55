"""Amplitudes become greys by one stated rule."""

from __future__ import annotations

import numpy as np
import pytest

from geoseg.data.amplitudes import Amplitudes


def test_zero_is_the_middle_and_the_scale_is_that_of_the_survey() -> None:
    weak, strong = np.array([[-1.0, 0.0, 1.0]]), np.array([[-4.0, 0.0, 4.0]])
    rule = Amplitudes(clip=100)
    limit = rule.limit([weak, strong])
    assert limit == 4
    np.testing.assert_array_equal(rule.greys(strong, limit), [[0, 128, 255]])
    np.testing.assert_array_equal(rule.greys(weak, limit), [[96, 128, 159]])  # 255 * 3/8 and 255 * 5/8
    np.testing.assert_array_equal(Amplitudes(clip=100, per="section").greys(weak), [[0, 128, 255]])


def test_a_percentile_leaves_out_spikes_and_missing_traces() -> None:
    values = np.concatenate([np.arange(-50.0, 50.0), [1e9, np.nan, np.inf]])[None]
    rule = Amplitudes(clip=90, per="section")
    assert rule.limit([values]) == np.percentile(np.abs(values[0, :101]), 90)
    greys = rule.greys(values)
    assert greys[0, 100] == 255 and greys[0, 101] == greys[0, 102] == 128


def test_known_values_and_the_other_polarity() -> None:
    values = np.array([[0.0, 51.0, 255.0, 300.0]])
    np.testing.assert_array_equal(Amplitudes(grey_range=[0, 255]).greys(values), [[0, 51, 255, 255]])
    np.testing.assert_array_equal(Amplitudes(grey_range=[0, 255], turn=True).greys(values), [[255, 204, 0, 0]])
    assert not Amplitudes(grey_range=[0, 255]).measured


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip": 0}, "clip=0"),
        ({"per": "line"}, "per='line'"),
        ({"grey_range": [1, 1]}, "two different numbers"),
    ],
)
def test_what_cannot_be(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        Amplitudes(**options)  # type: ignore[arg-type]


def test_only_zeros_have_no_scale() -> None:
    with pytest.raises(ValueError, match="no scale"):
        Amplitudes().limit([np.zeros((3, 3))])
