"""Charts over many runs: every number where it belongs, no label over another."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats

from geoseg import charts
from geoseg.ablation import Ablation, Line
from geoseg.charts import (
    Cost,
    costs,
    distance,
    draw_ablation,
    draw_costs,
    draw_distances,
    draw_losses,
    draw_spreads,
    spreads,
)
from geoseg.losses import Curve
from tests.made_records import failed, record

IOU = "test/matched/iou/mean"


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are written."""
    seen: list[Figure] = []
    save = charts._save
    monkeypatch.setattr(charts, "_save", lambda figure, stem: seen.append(figure) or save(figure, stem))
    return seen


def check(figure: Figure, files: list[Path]) -> None:
    """Both files are there and whole; all words lie inside the figure and none over another."""
    assert [path.suffix for path in files] == [".png", ".pdf"]
    assert sorted(path.name for path in files[0].parent.iterdir()) == sorted(path.name for path in files)
    with Image.open(files[0]) as picture:
        assert np.asarray(picture.convert("L")).min() < 100
    assert files[1].read_bytes().startswith(b"%PDF")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    words = [text for axis in figure.axes for text in [axis.title, axis.xaxis.label, axis.yaxis.label]]
    words += [axis._left_title for axis in figure.axes]  # type: ignore[attr-defined]
    for axis in figure.axes:
        for ticks in (axis.xaxis, axis.yaxis):
            low, high = sorted(ticks.get_view_interval())
            ticks_shown = [*ticks.get_major_ticks(), *ticks.get_minor_ticks()]
            words += [tick.label1 for tick in ticks_shown if low <= tick.get_loc() <= high]
    legends = [*figure.legends, *(axis.get_legend() for axis in figure.axes if axis.get_legend())]
    words += [text for legend in legends for text in [*legend.get_texts(), legend.get_title()]]
    slanted = []
    for axis in figure.axes:  # parallel lines of text, whose distance is that of their ends across the slant
        labels = [label for label in axis.get_xticklabels() if label.get_rotation() % 90]
        ends = [label.get_window_extent(renderer).x1 for label in labels]
        apart = np.diff(ends) * np.sin(np.radians(labels[0].get_rotation())) if labels else np.array([])
        assert (apart > 8 / 72 * figure.dpi).all(), labels
        slanted += labels
    boxes = {id(text): (text.get_text(), text.get_window_extent(renderer)) for text in words if text.get_text().strip()}
    width, height = figure.bbox.size
    for text, box in boxes.values():
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1, text
    straight = [
        boxes[id(text)]
        for text in {id(text): text for text in words}.values()
        if id(text) in boxes and text not in slanted
    ]
    for (a, one), (b, other) in combinations(straight, 2):
        apart = min(one.x1, other.x1) - max(one.x0, other.x0), min(one.y1, other.y1) - max(one.y0, other.y0)
        assert min(apart) < 1, (a, b)


def ablation(values: list[Any], lines: int = 2, **more: Any) -> Ablation:
    points = {score: {value: [0.1, 0.2, 0.4] for value in values} for score in charts.SCORES}
    made = [Line(f"method {i}", "", stage, points) for i in range(lines) for stage in ("pass 1", "pass 2")]
    made.append(Line("method 0", "", "", {"train/loss": {value: [0.01] for value in values}}))
    return Ablation(
        **{
            "data": "earth $1",
            "key": "data.num_train",
            "values": values,
            "lines": made,
            "without": [],
            "alike": True,
            **more,
        }
    )


def test_means_bands_and_single_runs_over_a_setting(tmp_path: Path, drawn: list[Figure]) -> None:
    points = {IOU: {1: [0.1, 0.2, 0.6], 2: [0.3, 0.5], 8: [0.5, 0.6, 0.7]}}
    made = Ablation("earth", "num_train", [1, 2, 8], [Line("a", "", "", points)], ["U-Net"], alike=False)
    files = draw_ablation(made, tmp_path / "over")
    check(drawn[0], files)
    (axis,) = drawn[0].axes
    assert axis.get_xscale() == "log"
    mean, *single = axis.lines
    assert np.asarray(mean.get_data()).tolist() == [[1, 2, 8], pytest.approx([0.3, 0.4, 0.6])]
    runs = sorted((x, y) for line in single if line.get_marker() == "o" for x, y in np.transpose(line.get_data()))
    assert runs == [(x, y) for x, values in points[IOU].items() for y in sorted(values)]
    bars = {line.get_xdata()[0]: sorted(line.get_ydata()) for line in single if line.get_marker() != "o"}
    for x in (1, 8):  # two runs have no interval, so that the bands beside them are bars
        wanted = stats.ttest_1samp(points[IOU][x], 0).confidence_interval()
        assert bars[x] == pytest.approx([wanted.low, wanted.high])
    low, high = axis.get_ylim()  # of what was measured, not of an interval over three runs
    assert 0 < low < 0.1 and 0.7 < high < 0.8 and wanted.high > high
    note = drawn[0].legends[0].get_title().get_text().replace("\n", " ")
    assert "without this setting: U-Net; not all values were scored on the same profiles" in note


def test_a_band_between_neighbours(tmp_path: Path, drawn: list[Figure]) -> None:
    draw_ablation(ablation([1, 2, 4], lines=1), tmp_path / "over")
    axis = drawn[0].axes[0]
    assert axis.get_xscale() == "linear"  # a factor of 4
    low, high = stats.ttest_1samp([0.1, 0.2, 0.4], 0).confidence_interval()
    for band in axis.collections:
        corners = band.get_paths()[0].vertices
        assert (corners[:, 0].min(), corners[:, 0].max()) == (1, 4)
        assert (corners[:, 1].min(), corners[:, 1].max()) == pytest.approx((low, high))
    assert [axis.get_title() for axis in drawn[0].axes] == [*charts.SCORES.values(), "final training loss ↓"]
    loss = drawn[0].axes[-1].lines[0]
    last = next(line for line in axis.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 3)
    assert (loss.get_color(), loss.get_marker()) == (last.get_color(), last.get_marker())


@pytest.mark.parametrize(
    "made",
    [
        ablation([1, 2, 4, 8, 16, 32]),
        ablation([100, 101, 102, 103, 104, 200, 1000]),
        ablation([0.001, 0.00101, 0.1], lines=9),
        ablation(
            ["random", ("test1_0", "test2_0", "test1_199"), ("test1_99", "test2_99", "test2_199"), "spread evenly"]
        ),
        ablation([None, 1, 5], lines=14, without=["a method with a long name"] * 9),
        ablation([False, True], lines=1),
    ],
)
def test_no_label_lies_over_another(tmp_path: Path, drawn: list[Figure], made: Ablation) -> None:
    files = draw_ablation(made, tmp_path / "over")
    check(drawn[0], files)
    shown = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    stages = 1 if len(made.lines) > charts.MOST_LINES else 2
    assert len(shown) == len(set(shown)) == (len(made.lines) - 1) // 2 * stages
    styles = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in drawn[0].legends[0].get_lines()}
    assert len(styles) == len(shown)


def test_cost_against_score(tmp_path: Path, drawn: list[Figure]) -> None:
    def run(method: str, seed: int, fit: float, start: float) -> dict[str, Any]:
        minutes = {"fit": fit, "predict": 0.5, "score": 9.0}
        return record(method, start, seed=seed, minutes=minutes)

    many = [run("a", 0, 1.0, 0.1), run("a", 1, 2.0, 0.3), run("b", 0, 20.0, 0.5), failed()]
    found = costs([*many, many[0]])
    assert found == [Cost("earth", "a", [1.5, 2.5], [0.107, 0.307]), Cost("earth", "b", [20.5], [0.507])]
    files = draw_costs(found, tmp_path / "cost")
    check(drawn[0], files)
    (axis,) = drawn[0].axes
    assert axis.get_xscale() == "log"
    first, second = axis.containers
    assert np.ravel(first.lines[0].get_data()) == pytest.approx([2.0, 0.207])
    assert np.ravel(second.lines[0].get_data()) == pytest.approx([20.5, 0.507])
    across, up = (bar.get_segments()[0] for bar in first.lines[2])
    assert np.ptp(across[:, 0]) / 2 == pytest.approx(np.std([1.5, 2.5], ddof=1))
    assert np.ptp(up[:, 1]) / 2 == pytest.approx(np.std([0.107, 0.307], ddof=1))
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["a, 2 runs", "b, 1 run"]


def test_what_records_do_not_know_costs_nothing(tmp_path: Path, drawn: list[Figure]) -> None:
    told = {"trainable_parameters": 1000, "ms_per_image": 12.5}
    many = [
        record("a", 0.1, costs=told),
        record("b", 0.2),  # of an earlier version
        record("c", 0.3, costs={"trainable_parameters": 0, "ms_per_image": None}),
    ]
    assert costs(many, "trainable_parameters") == [Cost("earth", "a", [1000], [0.107])]
    found = costs(many, "ms_per_image")
    assert found == [Cost("earth", "a", [12.5], [0.107])]
    files = draw_costs(found, tmp_path / "cost", "ms_per_image")
    check(drawn[0], files)
    assert drawn[0].axes[0].get_xlabel() == "milliseconds per image at prediction"


def placed(method: str, values: list[float | None], seed: int = 0, **more: Any) -> dict[str, Any]:
    names = [f"line_{10 * i}" for i in range(len(values))]
    made = record(method, seed=seed, units=len(values), **more)
    data = {**made["data"], "train": ["line_0", "line_5", "other_20"], "test": names}
    units = {"names": names, "unit": "section"}
    return {**made, "data": data, "units": units, "per_unit": {**made["per_unit"], "test/iou/mean": values}}


SCATTERED = [
    placed("a", [0.1, 0.2, 0.3, 0.4, 0.5, None]),
    placed("a", [0.3, 0.4, 0.5, 0.6, 0.7, None], seed=1),
    placed("b $x$", [0.9, 0.8, 0.7, 0.6]),
    failed(),
]


def test_scores_of_single_profiles(tmp_path: Path, drawn: list[Figure]) -> None:
    first, second = spreads(SCATTERED)
    assert first.scores == pytest.approx({f"line_{10 * i}": 0.2 + 0.1 * i for i in range(5)})  # means of two seeds
    assert (first.data, first.method, second.method) == ("earth", "a", "b $x$")
    files = draw_spreads([first, second], tmp_path / "spread")
    check(drawn[0], files)
    (axis,) = drawn[0].axes
    points = [line for line in axis.lines if line.get_marker() == "o"]
    assert [sorted(line.get_xdata()) for line in points] == [
        pytest.approx(sorted(one.scores.values())) for one in (first, second)
    ]
    median = next(line for line in axis.lines if line.get_marker() != "o" and set(line.get_xdata()) == {0.4})
    assert np.ptp(median.get_ydata()) > 0.5
    boxes = [line for line in axis.lines if line.get_marker() != "o"]
    assert all(max(line.get_ydata()) < 0.5 for line in boxes)  # four images have no box
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b $x$"]


def test_scores_over_the_distance_from_the_training_data(tmp_path: Path, drawn: list[Figure]) -> None:
    assert distance("line_20", ["line_0", "line_5", "other_20"]) == 15
    assert distance("profile", ["profile"]) is None
    first, second = found = spreads(SCATTERED)
    assert first.distances == {"line_0": 0, "line_10": 5, "line_20": 15, "line_30": 25, "line_40": 35}
    assert list(second.distances.values()) == [0, 5, 15, 25]
    assert spreads(SCATTERED, origin=30.0)[1].distances == {"line_0": 30, "line_10": 20, "line_20": 10, "line_30": 0}
    files = draw_distances(found, tmp_path / "distance")
    check(drawn[0], files)
    line = next(line for line in drawn[0].axes[0].lines if line.get_linestyle() == "-")
    np.testing.assert_allclose(np.transpose(line.get_data()), [[0, 0.2], [5, 0.3], [15, 0.4], [25, 0.5], [35, 0.6]])
    with pytest.raises(ValueError, match="no profile has a distance .*--distance NUMBER"):
        draw_distances(spreads([record()]), tmp_path / "none")


def test_losses_of_all_trainings_by_method(tmp_path: Path, drawn: list[Figure]) -> None:
    steps = np.arange(200)

    def logged(scale: float) -> dict[str, Curve]:
        return {
            "train/loss": Curve(steps, scale * np.exp(-steps / 40)),
            "val/loss": Curve(steps[49::50], np.full(4, scale)),
            "lr/unet": Curve(steps, 1e-4 * (1 - steps / 199)),
            "lr/text": Curve(steps, np.full(200, 1e-5)),
        }

    trainings = {
        "label LoRA": [logged(1.0), logged(2.0)],
        "U-Net with $ in its name": [{"train/loss": Curve(steps, 1 + steps / 199)}],
    }
    files = draw_losses(trainings, tmp_path / "losses")
    check(drawn[0], files)
    loss, rate, other, none = drawn[0].axes
    assert loss.get_title(loc="left") == "label LoRA: 2 trainings"
    assert (loss.get_yscale(), other.get_yscale()) == ("log", "linear")
    x, y = loss.lines[0].get_data()
    assert (x[0], y[0]) == (9, pytest.approx(np.exp(-steps[:10] / 40).mean()))  # a 20th of 200 steps
    assert loss.lines[1].get_ydata().tolist() == [1.0] * 4
    assert [text.get_text() for text in rate.get_legend().get_texts()] == ["text", "unet"]
    assert rate.get_yscale() == "log"
    assert len(none.lines) == 0
