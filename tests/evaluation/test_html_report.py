"""The report of an evaluation: made of any results folder, whole in itself; what is in it is text, never markup."""

import json
import re
import shutil
from base64 import b64decode
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from neuralmem import page
from neuralmem.errors import UserError
from neuralmem.evaluation.cli import docstrings, main
from neuralmem.evaluation.html_report import find_lines, reading, write_machine, write_report

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
EVIL = "<script>alert(1)</script>\" onload='x' &amp;"
DOCSTRINGS = {"copy": "Copies of what was read.\n\nA block is read, then asked for.\n\noptions\n  none"}


def results(folder: Path, **changes: object) -> Path:
    """The folder of an evaluation that this package does not have."""
    folder.mkdir(parents=True, exist_ok=True)
    row = {"ckpt_sha256": "c" * 64, "ablation": "none", "prompt_tokens": 64, "wall_s": 1.5, "state_bytes": 2048}
    row |= {"reach": 30, "seed": 7, "drops": [1.0], **changes}
    rows = [row | {"hit": 1, "null": i / 10} for i in range(12)] + [row | {"ablation": "off"}]
    (folder / "copy.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    lines = ["length,ablation,depth_pct,accuracy,low,high,null"]
    lines += [f"64,{mode},{depth},0.66666666,0.5,0.75,0.1" for mode in ("none", "off") for depth in ("all", 0, 50)]
    (folder / "copy.csv").write_text("\n".join(lines) + "\n")
    (folder / "gap_64.png").write_bytes(PNG)
    return folder


class Page(HTMLParser):
    """What a browser would find: tags with their attributes, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data + " "


def read(folder: Path) -> Page:
    return Page(write_report(folder, DOCSTRINGS).read_text())


def test_any_folder_with_rows_tables_and_pictures_gets_its_report(tmp_path: Path) -> None:
    found = read(results(tmp_path / "run" / "copy"))
    for part in (
        "copy: run/copy",
        "Copies of what was read.",
        "A block is read, then asked for.",
        "copy.csv",
        "In all lines: length 64, depth_pct all, accuracy 0.6667",
        "gap_64.png",
        "The reach is 30 tokens",
        "A score says something about the memory only where",
        "Intervals are at 95%",
        "the memory's output is zero",
        "2 KiB",
        "832",
        "cccccccc",
    ):
        assert part in found.words, part
    assert "options none" not in found.words
    assert "frozen" not in found.words, "a control that was not run"
    (image,) = [attributes["src"] for tag, attributes in found.tags if tag == "img"]
    assert image is not None
    assert b64decode(image.removeprefix("data:image/png;base64,")) == PNG


def test_lines_that_sum_up_come_first_and_the_others_are_folded(tmp_path: Path) -> None:
    text = write_report(results(tmp_path), {}).read_text()
    before, folded = text.split("<details>")[:2]
    assert before.count("<tbody><tr>") == 1
    assert len(re.findall(r"<tr( class=faint)?><td", before.split("<tbody>")[1])) == 2, "none and off, of all depths"
    assert "<tr class=faint><td>off</td>" in before
    assert "all 6 lines" in folded


def test_settings_are_what_rows_have_in_common_and_no_measurement(tmp_path: Path) -> None:
    text = write_report(results(tmp_path), {}).read_text().split("Settings, as the rows have them")[1]
    assert "<tr><td>seed</td><td>7</td></tr>" in text
    assert "<tr><td>ablation</td><td>none, off</td></tr>" in text
    for name in ("wall_s", "hit", "null", "drops"):
        assert f"<td>{name}</td>" not in text, name


def test_what_a_user_or_a_model_wrote_is_text(tmp_path: Path) -> None:
    folder = results(tmp_path / EVIL.replace("/", "-"), key=EVIL)
    (folder / "copy.csv").write_text(f'"<b>column</b>",x\n"{EVIL.replace(chr(34), chr(39))}",1\n')
    (folder / "settings.json").write_text(json.dumps({"text": EVIL}))
    (folder / "machine.json").write_text(json.dumps({"command": EVIL}))
    (folder / "a<i>b.png").write_bytes(PNG)
    found = read(folder)
    allowed = "html head meta title style body h1 h2 p div b span table thead tbody tr th td img details summary pre"
    assert {tag for tag, _ in found.tags} <= set(allowed.split())
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
    assert found.words.count("<script>alert(1)</script>") >= 4, "as text it is there"


def test_the_page_fetches_nothing(tmp_path: Path) -> None:
    folder = results(tmp_path, key="https://example.org/x.png")
    text = write_report(folder, docstrings()).read_text()
    found = Page(text)
    policy = [a["content"] for tag, a in found.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == [page.POLICY]
    assert page.POLICY.startswith("default-src 'none'")
    links = [value for _, a in found.tags for name, value in a.items() if name in ("src", "href", "action", "data")]
    assert links
    assert all(value is not None and value.startswith("data:image/png;base64,") for value in links)
    assert not re.search(r"@import|url\(", text)


def test_it_says_with_what_and_where(tmp_path: Path) -> None:
    import torch

    folder = results(tmp_path)
    assert "not known" in read(folder).words
    write_machine(folder, ["copy", "--out", "x"])
    words = read(folder).words
    for part in ("eval.py copy --out x", torch.__version__, "cores", "sha256 of copy.jsonl"):
        assert part in words, part


def test_rows_are_found_by_the_name_of_their_table(tmp_path: Path) -> None:
    assert find_lines(tmp_path) is None
    for name in ("other.jsonl", "half_life.jsonl", "half_life.csv"):
        (tmp_path / name).write_text("")
    assert find_lines(tmp_path) == ("half-life", tmp_path / "half_life.jsonl")
    (tmp_path / "needles").mkdir()
    (tmp_path / "needles" / "rows.jsonl").write_text("")
    assert find_lines(tmp_path / "needles") == ("niah", tmp_path / "needles" / "rows.jsonl")


def test_a_folder_without_results_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for given, message in ((tmp_path, "which holds no results"), (tmp_path / "no", "which is no folder")):
        assert main(["report", "--out", str(given)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "copy.jsonl").write_text("[1]\n")
    with pytest.raises(UserError, match="line 1 is not a result row"):
        write_report(tmp_path, {})


def test_a_needle_run_ends_with_its_report(
    checkpoint: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["niah", "--checkpoint", str(checkpoint), "--lengths", "256", "--samples", "2", "--out", str(tmp_path)]
    given += ["--haystack", f"file:{text_file}", "--max-new-tokens", "1"]
    assert main(given) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "report.html")
    first = (tmp_path / "report.html").read_text()
    for part in ("null model", "reset", "heatmap_recall", "eval.py niah", "95% interval", "Needles in a haystack"):
        assert part in unescape(first), part
    (tmp_path / "report.html").unlink()
    assert main(["report", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "report.html").read_text() == first


@pytest.mark.parametrize(
    ("options", "place"), [([], "run/niah"), (["--baseline", "recency"], "run/niah_recency")], ids=["memory", "recency"]
)
def test_the_report_lies_where_the_results_are(
    checkpoint: Path, text_file: Path, tmp_path: Path, options: list[str], place: str
) -> None:
    shutil.copytree(checkpoint, tmp_path / "run")
    given = ["niah", "--checkpoint", str(tmp_path / "run"), "--lengths", "256", "--samples", "2", "--ablate", "none"]
    assert main([*given, "--haystack", f"file:{text_file}", "--max-new-tokens", "1", *options]) == 0
    reports = [file.relative_to(tmp_path).parent.as_posix() for file in tmp_path.rglob("report.html")]
    assert reports == [place]
    assert all(option in (tmp_path / place / "machine.json").read_text() for option in options)


def test_a_shipped_model_s_report_lies_where_its_results_are(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["niah", "--checkpoint", "neuralmem/mag-tiny", "--lengths", "256", "--samples", "2", "--ablate", "none"]
    assert main([*given, "--haystack", f"file:{text_file}", "--max-new-tokens", "1"]) == 0
    assert (tmp_path / "runs" / "mag-tiny" / "niah" / "report.html").is_file()


def test_a_report_that_fails_does_not_fail_the_run(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk\nfull")

    monkeypatch.setattr("neuralmem.evaluation.html_report.write_report", fail)
    (tmp_path / "story.txt").write_text("It was night.\n" * 9)
    given = [
        "look",
        "--checkpoint",
        str(checkpoint),
        "--out",
        str(tmp_path / "out"),
        "--text",
        str(tmp_path / "story.txt"),
    ]
    assert main(given) == 0
    assert capsys.readouterr().err == f"warning: no report of {tmp_path / 'out'}: disk full\n"


def test_what_is_said_of_reaches_and_intervals() -> None:
    two = " ".join(reading(["task", "found"], [{"reach": 30}, {"reach": 60}]))
    assert "The reach is 30 or 60 tokens" in two
    assert "whole text" not in two
    assert "95%" not in two
    mixed = " ".join(reading(["low"], [{"reach": 30}, {"reach": 1 << 62}]))
    assert "Attention of some models sees the whole text" in mixed
    assert "95%" in mixed
