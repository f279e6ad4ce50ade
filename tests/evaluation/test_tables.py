"""Tables and curves that all evaluations share: columns, alignment, axes, and files that are whole or not there."""

import io
import math
from pathlib import Path

import pytest
from rich.console import Console

from neuralmem.evaluation.bootstrap import Mean
from neuralmem.evaluation.curves import Curve, Curves, draw
from neuralmem.evaluation.pictures import save
from neuralmem.evaluation.stats import wilson
from neuralmem.evaluation.tables import Line, print_lines, to_csv, with_ends


def printed(lines: list[Line]) -> list[str]:
    out = io.StringIO()
    print_lines("title", lines, ["a note"], Console(file=out, width=80, color_system=None))
    return out.getvalue().splitlines()


def test_names_stand_left_numbers_right_and_empty_columns_are_left_out() -> None:
    shown = printed([{"name": "a", "loss": 0.5, "none": None}, {"name": "longer", "loss": 12.25, "none": math.nan}])
    assert shown[0].strip() == "title"
    assert shown[-1].strip() == "a note"
    assert "none" not in "".join(shown)
    assert "│ a      │  0.500 │" in shown
    assert "│ longer │ 12.250 │" in shown


def test_a_share_has_its_interval_and_n_below_and_none_of_nothing() -> None:
    shown = printed([{"facts": 4, "found": wilson(1, 2)}, {"facts": 1024, "found": wilson(0, 0)}])
    assert "│     4 │        50.0% │" in shown
    assert "│       │ 9.5-90.5 (2) │" in shown
    assert "│ 1,024 │              │" in shown


def test_what_was_not_measured_is_empty_in_a_file() -> None:
    lines = [with_ends("x", wilson(0, 0)), with_ends("x", Mean(1 / 3, math.nan, math.nan, 1))]
    assert to_csv(lines) == "x,x_low,x_high\n,,\n0.3333333,,\n"


def test_small_numbers_keep_their_digits_in_a_file() -> None:
    assert to_csv([{"x": 1.23456789e-9}]) == "x\n1.234568e-09\n"


def test_zero_has_a_place_on_a_logarithmic_axis_and_marks_stand_inside_only() -> None:
    points = [(x, 0.5, 0.25, 0.75) for x in (0, 1024, 4096)]
    (axes,) = draw(Curves("t", "x", "y", [Curve("memory on", points)], marks={"in": 2048, "out": 9000}), "run").axes
    places = axes.transData.transform([(x, 0.5) for x, *_ in points])[:, 0]
    assert places[0] < places[1] < places[2]
    assert [text.get_text() for text in axes.texts] == ["in 2k"]


@pytest.mark.parametrize(("scale", "low"), [("share", -0.03), ("amount", 0), ("any", None)])
def test_scales(scale: str, low: float | None) -> None:
    points = [(16, -2.0, None, None), (32, 4.0, None, None)]
    (axes,) = draw(Curves("t", "x", "y", [Curve("off", points)], scale=scale), "run").axes  # type: ignore[arg-type]
    assert axes.get_ylim()[0] == low if low is not None else axes.get_ylim()[0] < -2


def test_a_picture_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    class Fails:
        def savefig(self, path: Path, **options: object) -> None:
            path.write_bytes(b"half")
            raise OSError("disk full")

    path = tmp_path / "x.png"
    path.write_bytes(b"whole")
    with pytest.raises(OSError, match="disk full"):
        save(Fails(), path)
    assert path.read_bytes() == b"whole"
