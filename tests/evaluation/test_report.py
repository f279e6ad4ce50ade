"""The table and the picture: what they say, and that they are written whole."""

import io
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from rich.console import Console

from neuralmem.evaluation.heatmap import draw, write_heatmaps
from neuralmem.evaluation.needle_table import print_table
from neuralmem.evaluation.pictures import short
from neuralmem.evaluation.rows import Row
from neuralmem.evaluation.summary import Grid, summarise

GRID = Grid((0.0, 50.0, 100.0))
PLAIN = Row(
    task="s-niah-n",
    protocol="exact",
    nominal_len=1024,
    prompt_tokens=1024,
    context_tokens=900,
    needle_spans=((10, 20),),
    distance_to_query=1000,
    farthest_distance=1000,
    reach=256,
    null=0.25,
    beyond_window=True,
    depth_pct=1.0,
    key="a-b",
    answers=("1234567",),
    pred=" 1234567",
    official=1,
    strict=1,
    answer_nll=0.5,
    rank_of_10=1,
    seed=0,
    sample_id=0,
    prompt_sha256="p",
    tokenizer_sha256="t",
    haystack_id="noise",
    ckpt_sha256="c",
    state_bytes=1,
    chunk_size_train=32,
    chunk_size_eval=32,
    dtype="float32",
    device="cpu",
    wall_s=0.1,
    ablation="none",
    partner=None,
)


def rows(reach: int = 256, lengths: tuple[int, ...] = (1024, 4096), controls: bool = True) -> list[Row]:
    """Nine samples per length; memory finds all but depth 0 in the longest, the controls what is in reach."""
    made = []
    for length in lengths:
        for number in range(9):
            distance = length - (number % 3) * length // 2
            beyond = distance > reach
            row = replace(PLAIN, nominal_len=length, prompt_tokens=length, sample_id=number, reach=reach)
            row = replace(row, null=min(1.0, reach / length))
            row = replace(row, beyond_window=beyond, distance_to_query=distance)
            found = int(not (length == max(lengths) and number % 3 == 0 and beyond))
            made.append(replace(row, official=found, strict=found))
            if controls:
                for name in ("frozen", "off", "reset"):
                    hit = int(not beyond and name != "reset")
                    made.append(replace(row, ablation=name, official=hit, strict=hit))
    return made


def printed(lines) -> str:
    out = io.StringIO()
    print_table(lines, "runs/x", Console(file=out, width=150, color_system=None))
    return out.getvalue()


def test_table_prints_reach_null_interval_n_and_controls() -> None:
    text = printed(summarise(rows()))
    for part in (
        "see 256 tokens",
        "25.0%",
        "6.2%",
        "50.0%",
        "18.8-81.2 (6)",
        "100.0%",
        "61.0-100.0 (6)",
        "frozen",
        "off",
        "reset",
    ):
        assert part in text, part
    assert "runs/x" in text


def test_controls_count_only_needles_beyond_reach() -> None:
    short_line, long_line = summarise(rows())
    for line in (short_line, long_line):
        assert {name: (share.hits, share.n) for name, share in line.controls.items()} == dict.fromkeys(
            ("frozen", "off", "reset"), (0, 6)
        )
    assert (short_line.beyond.hits, short_line.beyond.n) == (6, 6)
    assert (long_line.beyond.hits, long_line.beyond.n) == (3, 6)
    assert (long_line.accuracy.hits, long_line.accuracy.n) == (6, 9)


def test_full_attention_has_nothing_beyond_reach() -> None:
    text = printed(summarise(rows(reach=sys.maxsize, controls=False)))
    assert "everything (full attention)" in text
    assert "none" in text
    assert "frozen" not in text


def test_recall_is_known_by_its_exact_score() -> None:
    made = [replace(row, task="recall", strict=0) for row in rows(controls=False)]
    assert {line.accuracy.share for line in summarise(made)} == {0.0}


def test_depths_by_assignment_or_by_measure() -> None:
    made = rows(controls=False, lengths=(1024,))
    assert {depth: len(some) for depth, some in GRID.bins(made).items()} == {0.0: 3, 50.0: 3, 100.0: 3}
    assert {depth: len(some) for depth, some in replace_assigned(GRID).bins(made).items()} == {
        0.0: 9,
        50.0: 0,
        100.0: 0,
    }


def replace_assigned(grid: Grid) -> Grid:
    return grid._replace(assigned=False)


def test_heat_map_is_a_png_and_nothing_else_is_left(tmp_path: Path) -> None:
    (path,) = write_heatmaps(rows(), GRID, tmp_path, "quickstart")
    assert path.name == "heatmap_s-niah-n_exact_noise.png"
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert list(tmp_path.iterdir()) == [path]


def test_heat_map_says_what_it_shows() -> None:
    figure = draw(rows(), GRID, "quickstart")
    words = " ".join(text.get_text() for text in figure.texts)
    for part in ("s-niah-n", "noise", "n = 9", "quickstart", "256 tokens"):
        assert part in words
    main, *controls = figure.axes[:4]
    assert sorted(text.get_text() for text in main.texts) == sorted(["0", *["100"] * 5])
    assert [axes.get_title(loc="left") for axes in controls] == ["memory frozen", "memory off", "memory reset"]
    labels = [label.get_text() for label in main.get_xticklabels()]
    assert labels == ["1k\nnull 25%", "4k\nnull 6%"]


def test_no_line_runs_out_of_a_narrow_picture() -> None:
    """A name with its hash is longer than a picture of one length is wide."""
    some = [replace(row, haystack_id="a-name-as-long-as-they-come:0123abcd") for row in rows()]
    narrow = [row for row in some if row.nominal_len == some[0].nominal_len and row.ablation == "none"]
    figure = draw(narrow, GRID, "a checkpoint of some name")
    renderer = FigureCanvasAgg(figure).get_renderer()
    assert all(text.get_window_extent(renderer).x1 <= figure.bbox.width for text in figure.texts)


def test_reach_line_parts_cells_in_reach_from_those_beyond() -> None:
    main = draw(rows(), GRID, "x").axes[0]
    lines = sorted((tuple(line.get_xdata()), tuple(line.get_ydata())) for line in main.lines)
    assert lines == [((-0.5, 0.5), (1.5, 1.5)), ((0.5, 1.5), (1.5, 1.5))], "above depth 100% in both columns"
    assert not draw(rows(reach=sys.maxsize), GRID, "x").axes[0].lines


@pytest.mark.parametrize("count", [1, 7])
def test_any_number_of_lengths_can_be_drawn(count: int) -> None:
    lengths = tuple(1024 << i for i in range(count))
    assert draw(rows(lengths=lengths, controls=False), GRID, "x").axes


def test_lengths_are_written_as_one_reads_them() -> None:
    assert [short(n) for n in (96, 1024, 1 << 20, 1500)] == ["96", "1k", "1m", "1,500"]
