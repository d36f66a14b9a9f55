"""From amplitudes to greys: the one rule by which recorded numbers become a profile in [0, 1]."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from geoseg.data.pictures import in_greys


class Amplitudes:
    """Which amplitude becomes black and which white; what lies beyond is cut off, what lies between spread evenly.

    Amplitudes have no unit, and two surveys seldom one scale, so the scale is measured: zero becomes the middle grey,
    and white and black are c and -c, where ``clip`` per cent of all values are no further from zero than c. Measured
    over a whole survey it keeps a weak section weak; measured over each section it makes sections alike.

    Args:
        clip: per cent of the values that are not cut off, above 0 and up to 100.
        per: "survey" or "section": what c is measured over.
        grey_range: the values that become black and white, such as [0, 255], where they are known; then nothing is
            measured.
        turn: draw black as white and white as black, for data of the other polarity.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        clip: float = 99.0,
        per: str = "survey",
        grey_range: Sequence[float] | None = None,
        turn: bool = False,
    ) -> None:
        if not 0 < clip <= 100:
            raise ValueError(f"clip={clip}: per cent of the values is wanted, above 0 and up to 100, such as 99")
        if per not in ("survey", "section"):
            raise ValueError(f"per={per!r}: survey (one scale for all) or section (one for each) is wanted")
        if grey_range is not None and (
            len(grey_range) != 2 or not np.isfinite(grey_range).all() or grey_range[0] == grey_range[1]
        ):
            raise ValueError(f"grey_range={list(grey_range)}: two different numbers are wanted, black and white")
        self.clip, self.per, self.grey_range, self.turn = clip, per, grey_range, turn

    @property
    def measured(self) -> bool:
        """Whether a survey has to be looked at before its first section can be drawn."""
        return self.grey_range is None and self.per == "survey"

    def limit(self, sections: Iterable[np.ndarray]) -> float:
        """The amplitude c that becomes white, over all of ``sections``.

        Args:
            sections: arrays of numbers; nan and infinite values, which stand for missing traces, do not count.

        Raises:
            ValueError: there is no value but zero.
        """
        sizes = []
        for values in map(np.asarray, sections):
            if values.dtype.kind != "f":  # the lowest integer has no absolute value of its own type
                values = values.astype(np.float64)
            sizes.append(np.abs(values[np.isfinite(values)]).ravel())
        found = np.concatenate(sizes) if sizes else np.zeros(0)
        limit = float(np.percentile(found, self.clip)) if found.size else 0.0
        if limit == 0:
            raise ValueError(
                f"{self.clip:g} per cent of the amplitudes are zero, so there is no scale to draw them by; give "
                "a larger clip, or grey_range, the values that become black and white"
            )
        return limit

    def greys(self, section: np.ndarray, limit: float | None = None) -> np.ndarray:
        """A section [H, W] of amplitudes as uint8 [H, W].

        Args:
            section: numbers; nan and infinite values become the middle grey.
            limit: what ``limit`` found for the survey; needed where ``measured``.
        """
        section = np.asarray(section, dtype=np.float64)
        if self.grey_range is not None:
            black, white = self.grey_range
        else:
            assert limit is not None or not self.measured, "a survey's scale is measured over the survey"
            white = self.limit([section]) if limit is None else limit
            black = -white
        if self.turn:
            black, white = white, black
        return in_greys(np.where(np.isfinite(section), section, (black + white) / 2), (black, white))
