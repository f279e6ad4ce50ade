"""A run that is cut and goes on is, to the bit, the run that was not: weights, losses and the next checkpoint."""

import contextlib
import inspect
import json
import shutil
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from neuralmem.data.handover import positions
from neuralmem.data.hub import _Stream
from neuralmem.data.module import Files, TextData, Validation
from neuralmem.data.packing import PackedText
from neuralmem.data.prepare import main as prepare
from neuralmem.data.synthetic import Recall
from neuralmem.errors import UserError
from neuralmem.training.checkpoints import Checkpoints
from neuralmem.training.cli import main
from neuralmem.training.folder_io import read_checkpoint
from neuralmem.training.logs import read_metrics
from neuralmem.training.module import LanguageModel
from neuralmem.training.resume import first_rank
from tests.conftest import TINY
from tests.reliability.equal import same
from tests.reliability.map_style import Rows

Train = Callable[..., Path]
STEPS = 11
EVERY_STEP = ["--trainer.max_steps", str(STEPS), "--checkpoint.every", "1", "--checkpoint.keep", "99"]
MAP = ["--data", "tests.reliability.map_style.MapData"]
CASES = {
    "packed": ("mag", []),
    "carried memory": ("lmm", ["--data.carry", "true"]),
    "carried, accumulated": ("lmm", ["--data.carry", "true", "--tokens_per_step", "384"]),
    "carried, two workers": ("lmm", ["--data.carry", "true", "--data.num_workers", "2"]),
    "stream": ("mag", ["--data.source", "hf:json?data_files=text.jsonl&streaming=1&buffer=8"]),
    "stream, two workers": (
        "lmm",
        ["--data.source", "hf:json?data_files=text.jsonl&streaming=1&buffer=8", "--data.num_workers", "2"],
    ),
    "stream, carried": (
        "lmm",
        ["--data.source", "hf:json?data_files=text.jsonl&streaming=1&buffer=8", "--data.carry", "true"],
    ),
    "map style, epochs": ("mag", MAP),
    "map style, two workers": ("mag", [*MAP, "--data.num_workers", "2"]),
    "map style, ended by epochs": ("mag", [*MAP, "--trainer.max_epochs", "3"]),
    "curriculum": ("recall", ["--mastery.steps", "3"]),
    "shards, carried": ("lmm", ["--data.source", "shards:shards", "--data.carry", "true"]),
    "mixture, two workers": (
        "mag",
        ["--data.source", json.dumps({"text.jsonl": 0.7, "builtin": 0.3}), "--data.num_workers", "2"],
    ),
    "needles": (
        "mag",
        [
            *("--data", "NeedleData", "--data.tokenizer", "words:512", "--data.batch_tokens", "512"),
            *(
                "--data.stages",
                json.dumps([{"keys": 8, "length": 128, "facts": 1, "questions": 1, "mastery": 0.0}] * 2),
            ),
            *("--mastery.steps", "3"),
        ],
    ),
    "bf16": ("mag", ["--trainer.precision", "bf16-mixed"]),
    "log lines of three steps": ("transformer", ["--trainer.log_every_n_steps", "3"]),
}
SHORT = {
    "carried, accumulated": (4,),
    "stream, two workers": (7,),
    "map style, epochs": (4,),
    "shards, carried": (3,),
    "needles": (5,),
}


def losses(run: Path) -> list[tuple[float, float, float]]:
    return [(row["step"], row["loss"], row["tokens"]) for row in read_metrics(run / "metrics.csv")]


def cuts(case: str) -> list:
    short = SHORT.get(case, ())
    return [
        pytest.param(case, step, id=f"{case} {step}", marks=() if step in short else pytest.mark.soak)
        for step in range(1, 9 if "ended" in case else STEPS)
    ]


def write_texts() -> None:
    """What CASES read."""
    lines = (json.dumps({"text": f"{number} " * (5 + 97 * number % 41)}) for number in range(400))
    Path("text.jsonl").write_text("\n".join(lines) + "\n")
    assert prepare(["text.jsonl", "--tokenizer", "bytes", "--out", "shards"]) == 0


@pytest.fixture(scope="module")
def wholes() -> dict[str, Path]:
    """The uninterrupted runs, made when they are first needed."""
    return {}


@pytest.fixture
def whole_of(train: Train, wholes: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The uninterrupted run of a case, with a checkpoint of every step; and the texts that it reads, here."""
    write_texts()

    def make(case: str) -> Path:
        if case not in wholes:
            config, options = CASES[case]
            wholes[case] = tmp_path_factory.mktemp("whole") / "run"
            shutil.copytree(train(config, "whole", *options, *EVERY_STEP), wholes[case])
        return wholes[case]

    return make


@pytest.mark.parametrize(("case", "step"), [cut for case in CASES for cut in cuts(case)])
def test_a_run_cut_anywhere_is_the_uninterrupted_one(
    train: Train, tmp_path: Path, whole_of: Callable[[str], Path], case: str, step: int
) -> None:
    config, options = CASES[case]
    whole = whole_of(case)
    place = f"checkpoints/step={step}"
    shutil.copytree(whole / place, tmp_path / "half" / place)
    half = train(config, "half", *options, *EVERY_STEP, "--resume", "auto")
    assert losses(half) == [row for row in losses(whole) if row[0] > step]
    assert (half / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    last = f"checkpoints/step={int(losses(whole)[-1][0])}"
    same(half / last, whole / last)


def test_weights_of_several_files_go_on(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neuralmem.models.weights.LARGEST", 40_000)
    few = ["--trainer.max_steps", "4", "--checkpoint.every", "2"]
    whole = train("mag", "whole", *few)
    place = Path("checkpoints/step=2")
    parts = sorted(path.name for path in (whole / place).glob("model*"))
    assert parts[0].startswith("model-00001-of-0000")
    assert parts[-1] == "model.safetensors.index.json"
    shutil.copytree(whole / place, tmp_path / "half" / place)
    half = train("mag", "half", *few, "--resume", "auto")
    same(half / "checkpoints/step=4", whole / "checkpoints/step=4")
    assert all((half / name).read_bytes() == (whole / name).read_bytes() for name in parts)


def breaking(after: int, method: Callable[..., Any]) -> Callable[..., Any]:
    """The same method, but its call of this number, or what it yields in that place, is an error."""
    calls = count()

    def call(*given: Any) -> Any:
        if next(calls) == after:
            raise UserError("the data broke")
        return method(*given)

    def walk(*given: Any) -> Iterator[Any]:
        yield from islice(method(*given), after)
        raise UserError("the data broke")

    return walk if inspect.isgeneratorfunction(method) else call


@pytest.mark.parametrize(
    ("case", "broken", "method", "after", "left"),
    [
        ("stream, two workers", _Stream, "_rows", 25, None),
        pytest.param("stream", _Stream, "_rows", 25, None, marks=pytest.mark.soak),
        pytest.param("stream, carried", _Stream, "_rows", 25, None, marks=pytest.mark.soak),
        ("curriculum", Recall, "draw", 3, 3),  # a stage has just been mastered
        ("map style, epochs", Rows, "__getitem__", 12, 3),  # the first row of the second epoch
    ],
)
def test_data_that_break_cost_no_step(
    train: Train,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    whole_of: Callable[[str], Path],
    case: str,
    broken: type,
    method: str,
    after: int,
    left: int | None,
) -> None:
    """The steps before are saved, with the place in the data in front of the batch that could not be read."""
    (config, options), whole = CASES[case], whole_of(case)
    with monkeypatch.context() as patched:
        patched.setattr(broken, method, breaking(after, getattr(broken, method)))
        capsys.readouterr()
        given = ["--config", str(TINY / f"{config}.yaml"), "--run", "half", *options, "--report.at_end", "false"]
        assert main([*given, *EVERY_STEP, "--checkpoint.every", "99"]) == 2
    said = capsys.readouterr().err
    assert "the data broke" in said
    (step,) = (int(path.name.removeprefix("step=")) for path in Path("half/checkpoints").iterdir())
    assert 1 < step < STEPS
    assert left in (None, step)
    assert f"step {step} is saved; go on with --resume auto" in said
    same(Path(f"half/checkpoints/step={step}"), whole / "checkpoints" / f"step={step}")
    half = train(config, "half", *options, *EVERY_STEP, "--resume", "auto")
    assert losses(half) == losses(whole)
    same(half / f"checkpoints/step={STEPS}", whole / f"checkpoints/step={STEPS}")


def test_data_that_break_within_a_step_cost_what_is_after_the_last_checkpoint(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Two batches a step: the fourth does not come, so the second step is not whole."""
    options = ["--tokens_per_step", "384", "--trainer.max_steps", str(STEPS), "--checkpoint.every", "99"]
    monkeypatch.setattr(PackedText, "_batch", breaking(3, PackedText._batch))
    given = ["--config", str(TINY / "mag.yaml"), "--run", "half", *options, "--report.at_end", "false"]
    assert main(given) == 2
    assert "is saved" not in capsys.readouterr().err
    assert not Path("half/checkpoints").exists()


@pytest.mark.parametrize(
    ("environment", "first"),
    [({}, True), ({"NODE_RANK": "0"}, True), ({"NODE_RANK": "1"}, False), ({"NODE_RANK": "1", "RANK": "0"}, True)],
)
def test_the_first_rank_is_on_the_first_machine(
    environment: dict[str, str], first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning's own launcher names the machine alone to the process that it starts on each."""
    for name in ("NODE_RANK", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert first_rank() is first


def test_an_interrupt_before_training_goes_on_leaves_the_checkpoint_alone(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl+C while data open: the step is known by then, the place in the data is not."""
    run = train("transformer", "a", "--trainer.max_steps", "2")
    before = (run / "checkpoints" / "step=2" / "manifest.json").read_bytes()

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "on_train_start", interrupt)
    options = ["--config", str(run / "config.yaml"), "--resume", "auto", "--trainer.max_steps", "4"]
    with contextlib.suppress(SystemExit):
        assert main(options) == 130
    assert (run / "checkpoints" / "step=2" / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("workers", "change", "said"),
    [
        ("0", "seed", "data.seed has changed since the checkpoint was saved: it was 0, it is 1; "),
        ("2", "seed", "data.seed has changed since the checkpoint was saved: it was 0, it is 1; "),
        (
            "0",
            "text",
            "data.source has changed since the checkpoint was saved: it was 9 train documents (share 0.1) of ",
        ),
    ],
)
def test_changed_data_are_refused(
    train: Train, capsys: pytest.CaptureFixture, workers: str, change: str, said: str
) -> None:
    Path("texts").mkdir()
    for number in range(9):
        Path(f"texts/{number}.txt").write_text(f"{number} " * 900)
    options = ["--data.source", "texts", "--data.num_workers", workers, "--data.seed"]
    run = train("transformer", "a", *options, "0", "--trainer.max_steps", "2")
    before = sorted(path.name for path in run.rglob("*"))
    capsys.readouterr()
    if change == "text":
        Path("texts/4.txt").write_text("4 " * 901)
    again = [*options, "1" if change == "seed" else "0", "--trainer.max_steps", "4", "--resume", "auto"]
    assert main(["--config", str(run / "config.yaml"), *again]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: {said}")
    assert last.endswith("; resume with what it was, or begin anew in another --run")
    assert sorted(path.name for path in run.rglob("*")) == before


def test_resume_and_another_checkpoint_are_refused(train: Train, capsys: pytest.CaptureFixture) -> None:
    run = train("transformer", "a", "--trainer.max_steps", "1")
    options = ["--config", str(run / "config.yaml"), "--ckpt_path", "a/checkpoints/step=1"]
    assert main([*options, "--resume", "auto"]) == 2
    assert "resume is 'auto' and ckpt_path is 'a/checkpoints/step=1'; give one of them" in capsys.readouterr().err
    assert main([*options, "--resume", "last"]) == 2
    assert "resume is 'last'" in capsys.readouterr().err


@pytest.mark.parametrize(("before", "after"), [("2", "0"), ("0", "2")])
def test_another_number_of_loader_processes_goes_on(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], before: str, after: str
) -> None:
    """What is read after the change is what the data hand over, from the first step on; carried memory begins anew."""
    run = train("lmm", "a", "--data.carry", "true", "--trainer.max_steps", "4", "--data.num_workers", before)
    places = positions(read_checkpoint(run / "checkpoints" / "step=4")["loader_state"])
    seen: list[torch.Tensor] = []
    step = LanguageModel.training_step

    def record(self: LanguageModel, batch: Any, number: int) -> Any:
        assert seen or self.carried is None
        seen.append(batch.tokens)
        return step(self, batch, number)

    monkeypatch.setattr(LanguageModel, "training_step", record)
    options = ["--data.carry", "true", "--trainer.max_steps", "8", "--data.num_workers", after, "--resume", "auto"]
    train("lmm", "a", *options)
    assert "no document is skipped or repeated" in capsys.readouterr().err
    settings = yaml.safe_load((run / "config.yaml").read_text())["data"]["init_args"]
    nested = {"validation": Validation(**settings["validation"]), "files": Files(**settings["files"])}
    data = TextData(**settings | nested)
    data.take_over(places)
    expected = [batch.tokens for _, batch in zip(range(4), data.train_dataloader(), strict=False)]
    assert len(seen) == 4
    assert all(torch.equal(one, other) for one, other in zip(seen, expected, strict=True))


def test_data_of_others_refuse_another_number(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    run = train("mag", "a", *MAP, "--trainer.max_steps", "2")
    before = sorted(path.name for path in run.rglob("*"))
    arguments = ["--config", str(TINY / "mag.yaml"), "--run", "a", *MAP, "--data.num_workers", "2"]
    capsys.readouterr()
    assert main([*arguments, "--trainer.max_steps", "4", "--resume", "auto"]) == 2
    said = capsys.readouterr().err
    assert "1 device(s) and 0 loader process(es) on each, this run has 1 device(s) and 2 loader process(es)" in said
    assert sorted(path.name for path in run.rglob("*")) == before
