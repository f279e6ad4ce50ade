"""Looking at a memory while it reads: every token once, in its place; facts marked; files that can be read again."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from neuralmem import registry
from neuralmem.config import AttentionConfig, MemoryConfig, ModelConfig
from neuralmem.data.needle_format import NeedleFormat
from neuralmem.evaluation.cli import main
from neuralmem.evaluation.look import Seen, draw, find_facts, look, summarise
from neuralmem.models.causal_lm import CausalLM, build_model
from neuralmem.models.checkpoint import save
from neuralmem.tokenizer import ByteTokenizer

CONFIG = ModelConfig(
    vocab_size=11,
    width=8,
    depth=2,
    pattern=["transformer", "titans_lmm"],
    attention=AttentionConfig(heads=1, window=4, segment=8),
    memory=MemoryConfig(rule="delta", heads=2, chunk_size=4),
)
TEXT = torch.arange(30) * 7 % 11


@torch.no_grad()
def test_surprise_of_the_first_token_is_its_value_and_the_norm_that_of_the_state() -> None:
    """An empty linear memory says 0 to every key, so |M k - v|^2 is |v|^2."""
    model = CausalLM(CONFIG)
    (seen,) = look(model, TEXT, 4)
    assert seen.module == "layers.1.memory"
    assert {name: len(values) for name, values in seen.tokens.items()} == dict.fromkeys(seen.tokens, 30)
    assert {"surprise", "theta", "alpha", "write"} <= seen.tokens.keys()
    values: list[torch.Tensor] = []
    memory = model.layers[1].memory
    hook = memory.convolutions[2].register_forward_hook(lambda module, given, made: values.append(made[0]))
    state, norms = None, []
    for piece in TEXT[None].split(4, dim=1):
        _, state = model(piece, state)
        norms.append(float(state.layers[1].weights[0].flatten(2).norm(dim=-1).mean()))
    hook.remove()
    first = torch.nn.functional.silu(values[0][0, 0])
    assert seen.tokens["surprise"][0] == pytest.approx(float(first.view(2, 4).square().sum(-1).mean()), rel=1e-5)
    assert seen.steps == {"state_norm": pytest.approx(norms, rel=1e-5)}
    assert norms[0] > 0


@pytest.mark.parametrize("rule", registry.names("rule"))
@pytest.mark.parametrize("layer", ["titans_mag", "titans_mac"])
def test_every_rule_can_be_looked_at(rule: str, layer: str) -> None:
    memory = MemoryConfig(rule=rule, heads=2, chunk_size=4)
    seen = look(CausalLM(replace(CONFIG, pattern=[layer], memory=memory)), TEXT, 4)
    assert {f"layers.{i}.memory" for i in range(CONFIG.depth)} <= {one.module for one in seen}
    assert all("state_norm" in one.steps for one in seen if one.module.endswith(".memory"))
    for one in seen:
        assert {len(values) for values in one.tokens.values()} == {30}
        assert "surprise" in one.tokens
        assert all(len(values) == 8 for values in one.steps.values())


def test_a_model_that_learns_by_next_token_loss_shows_what_it_has() -> None:
    path = Path(__file__).parents[2] / "configs" / "tiny" / "ttt_e2e.yaml"
    import yaml

    given = yaml.safe_load(path.read_text())["model"]
    model = build_model(ModelConfig.from_dict(given | {"vocab_size": 11}))
    assert model.config.chunk_size == model.config.end_to_end.mini_batch != model.config.memory.chunk_size
    seen = look(model, TEXT, model.config.chunk_size)
    assert any("surprise" in one.steps for one in seen)
    assert {len(values) for one in seen for values in one.steps.values()} == {len(TEXT) // model.config.chunk_size}


def test_without_a_memory_nothing_is_seen() -> None:
    assert look(CausalLM(replace(CONFIG, pattern=["transformer"])), TEXT, 4) == []


def test_facts_are_found_by_the_format_of_training() -> None:
    bytes_ = ByteTokenizer()
    form = NeedleFormat(fact="@{key} {value}\n", digits=3)
    text = "über\n@ab 123\nno @cd 12\n@ef 1234\n@gh 007\n@ij"
    spans = find_facts(bytes_.encode(text), bytes_, form)
    assert [bytes(bytes_.encode(text)[a:b]) for a, b in spans] == [b"@ab 123\n", b"@gh 007\n"]
    assert find_facts(bytes_.encode("(ab).=1\n"), bytes_, NeedleFormat("({key}).={value}\n", digits=1)) == [(0, 8)]


def test_means_of_facts_and_of_everything_else() -> None:
    seen = [Seen("m", {"surprise": [1.0, 2.0, 3.0, 6.0], "theta_saturated": [0.0] * 4}, {"state_norm": [1.0]})]
    (line,) = summarise(seen, [(1, 2), (3, 4)], (3, 4), 4)
    assert line == {"module": "m", "quantity": "surprise", "text": 3.0, "facts": 4.0, "asked": 6.0, "elsewhere": 2.0}
    (bare,) = summarise(seen, [], None, 4)
    assert (bare["facts"], bare["asked"], bare["elsewhere"]) == (None, None, 3.0)


@pytest.mark.parametrize("modules", [1, 3, 9])
@pytest.mark.parametrize("length", [40, 400])
def test_every_quantity_has_a_panel_and_every_fact_a_mark(modules: int, length: int) -> None:
    tokens = {"surprise": [0.1 * i for i in range(length)], "theta_saturated": [0.0] * length, "delta": [1.0] * length}
    seen = [Seen(f"layers.{i}.memory", tokens, {"state_norm": [1.0] * (length // 10)}) for i in range(modules)]
    figure = draw(seen, [(3, 6), (20, 24)], (20, 24), 10, "quickstart")
    panels = [axes for axes in figure.axes if axes.get_ylabel()]
    assert [axes.get_ylabel().split("\n")[0] for axes in panels] == ["surprise", "state norm", "delta"]
    for axes in panels:
        assert [patch.get_gid() for patch in axes.patches] == ["fact", "asked"]
        assert len(axes.images) == (modules > 6)
    if modules == 3:
        assert [text.get_text() for text in panels[0].get_legend().get_texts()] == [one.module for one in seen]


def test_the_command_writes_its_numbers_and_reads_nothing_twice(
    checkpoint: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = json.loads((checkpoint / "data.json").read_text())["init_args"]
    assert data["source"] == str(text_file)
    given = ["look", "--checkpoint", str(checkpoint), "--out", str(tmp_path / "out"), "--length", "1x"]
    assert main(given) == 0
    assert main(given) == 0
    shown = capsys.readouterr().out
    for part in ("look.jsonl", "look.csv", "look.png", "surprise", "elsewhere", "layers.0.memory"):
        assert part in shown
    (line,) = (tmp_path / "out" / "look.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert row["prompt_tokens"] == len(row["token_texts"]) == 256
    assert row["asked"] in row["facts"]
    assert len(row["facts"]) == 6
    start, stop = row["asked"]
    assert "".join(row["token_texts"][start:stop]).startswith("@")
    assert {len(values) for values in row["modules"]["layers.0.memory"]["tokens"].values()} == {256}
    assert (tmp_path / "out" / "look.png").read_bytes()[:4] == b"\x89PNG"


def test_a_users_text(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "story.txt").write_text("It was night.\n@moon=123\nNothing moved.\n" * 20)
    given = ["look", "--checkpoint", str(checkpoint), "--out", str(tmp_path / "out")]
    assert main([*given, "--text", str(tmp_path / "story.txt"), "--length", "100"]) == 0
    row = json.loads((tmp_path / "out" / "look.jsonl").read_text())
    assert (row["prompt_tokens"], row["asked"], row["facts"]) == (100, None, [[14, 24], [53, 63]])
    capsys.readouterr()
    for more, message in (
        (["--text", "no.txt"], "--text is 'no.txt', which is no file"),
        (["--length", "1m"], "--length is 1048576; it must be at most 65536"),
        (["--text", str(empty(tmp_path))], "which holds no text"),
    ):
        assert main([*given, *more]) == 2
        assert message in capsys.readouterr().err


def test_options_that_mean_nothing_are_neither_offered_nor_taken(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["look", "--help"])
    shown = capsys.readouterr().out
    assert "--threads" in shown
    for option in ("--batch-size", "--stream-chunk"):
        assert option not in shown
        assert main(["look", "--checkpoint", str(checkpoint), option, "4"]) == 2
        assert capsys.readouterr().err.startswith(f"error: {option} is not an option")


def empty(folder: Path) -> Path:
    (folder / "empty.txt").write_text("")
    return folder / "empty.txt"


def test_a_checkpoint_without_memory_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = replace(CONFIG, vocab_size=257, pattern=["transformer"])
    save(tmp_path, CausalLM(config), ByteTokenizer())
    assert main(["look", "--checkpoint", str(tmp_path)]) == 2
    assert "which has no memory" in capsys.readouterr().err
