"""Progress bars: what stands in them, and that they cost nothing where nobody looks."""

from __future__ import annotations

import io
import re
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from geoseg import progress


def screen() -> Console:
    return Console(file=io.StringIO(), width=160, force_terminal=False)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_bars_show_name_count_and_note() -> None:
    console = screen()
    with progress.display(console=console):
        progress.section("label LoRA", 8)
        progress.expect("training", 200, unit="step")
        progress.advance("training", 150)
        progress.note("training", "loss 0.1234")
        progress.advance("generation", 3)
    lines = text(console).splitlines()
    assert re.search(r"label LoRA: training .* 150/200 step .*loss 0\.1234", lines[0])
    assert re.search(r"label LoRA: generation .* 3/8 image", lines[1])  # not expected, so the section's total


@pytest.mark.parametrize(
    ("speed", "unit", "shown"),
    [(2.5, "image", "2.5 image/s"), (1.0, "step", "1.0 step/s"), (0.25, "image", "4.0 s/image"), (None, "image", "")],
)
def test_rates_read_well(speed: float | None, unit: str, shown: str) -> None:
    task = SimpleNamespace(finished_speed=None, speed=speed, fields={"unit": unit})
    assert progress._Rate().render(task).plain == shown  # type: ignore[arg-type]


def test_a_running_bar_has_a_rate() -> None:
    console = screen()
    with progress.display(console=console):
        progress.expect("training", 40, unit="step")
        for _ in range(4):
            time.sleep(0.02)
            progress.advance("training", 10)
    rate = re.search(r"40/40 step +([\d.]+) step/s", text(console))
    assert rate is not None
    # rich measures from the first advance to the last: 30 steps in at least 0.06 s
    assert 0 < float(rate.group(1)) < 40 / 0.06


def test_tiles_of_one_image_count_as_one_image() -> None:
    console = screen()
    with progress.display(console=console):
        progress.expect("generation", 2)
        with progress.scale(1 / 4):
            for _ in range(4):
                progress.advance("generation")
            with progress.scale(1 / 2):
                progress.advance("generation", 8)
        progress.advance("generation", 3)
    assert "5/2 image" in text(console)  # 4 / 4 + 8 / 8 + 3


def test_announcing_twice_adds_up() -> None:
    console = screen()
    with progress.display(console=console):
        progress.expect("encoding", 4, unit="picture")
        progress.expect("encoding", 3)
        progress.advance("encoding", 7)
    assert "7/7 picture" in text(console)


def test_a_new_section_has_bars_of_its_own() -> None:
    console = screen()
    with progress.display(console=console):
        for title in ("first", "second"):
            progress.section(title, 5)
            progress.advance("prediction", 2)
    found = re.findall(r"(\w+): prediction .* (\d)/5", text(console))
    assert found == [("first", "2"), ("second", "2")]


def test_outside_a_display_nothing_happens(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.display(enabled=False):
        progress.section("title")
        progress.expect("training", 3)
        progress.advance("training")
        progress.note("training", "loss")
    progress.advance("training")
    assert capsys.readouterr() == ("", "")


def test_a_display_ends_with_an_error() -> None:
    console = screen()
    with pytest.raises(RuntimeError, match="stop"), progress.display(console=console):  # noqa: PT012
        progress.advance("training")
        raise RuntimeError("stop")
    written = text(console)
    progress.advance("training")
    assert text(console) == written


def test_where_several_share_a_stream_there_are_lines_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    console = screen()
    with progress.in_lines(), progress.display(console=console):
        progress.advance("training", 1)
        assert text(console) == ""
        monkeypatch.setattr(progress, "EVERY", 0.0)
        progress.expect("training", 1)
        progress.advance("training", 1)
    assert re.fullmatch(r"training: 2 of 1.*\n", text(console))
