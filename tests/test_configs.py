"""Every YAML in configs/ is a complete experiment that parses and builds, at the size its name says."""

import re
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest
import torch

from neuralmem import registry
from neuralmem.config import ModelConfig
from neuralmem.models.causal_lm import CausalLM
from neuralmem.training.command_line import CommandLine, quiet_lightning

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
PAPER = [path for path in CONFIGS if re.search(r"_\d+m$", path.stem)]
SLACK = 0.15  # between the parameters a model has and what its name says
LLAMA_2 = 32_000  # symbols of the paper's tokenizer


class Parsed(CommandLine):
    """A command line that stops before anything is built: paper configs name data of many gigabytes."""

    def instantiate_classes(self) -> None: ...

    def _set_seed(self) -> None: ...


@pytest.fixture(autouse=True)
def quiet() -> None:
    quiet_lightning()


@cache
def parse(path: Path) -> Parsed:
    with ExitStack() as held:
        return Parsed(["--config", str(path)], held)


def build(path: Path, vocab_size: int = LLAMA_2) -> CausalLM:
    fields = parse(path).config.as_dict()["model"]
    fields.pop("optimizer", None)
    with torch.device("meta"):
        config = ModelConfig.from_dict({**fields, "vocab_size": vocab_size})
        return registry.find("model", config.model, CausalLM, "model.model")(config)


@pytest.mark.filterwarnings("error:rule .* does not use memory")
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_parses_and_its_model_builds(path: Path) -> None:
    assert build(path).config.depth == parse(path).config.model.depth


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_its_size_is_that_of_its_name(path: Path) -> None:
    wanted = 1e6 * int(re.search(r"_(\d+)m$", path.stem)[1])
    parameters = sum(p.numel() for p in build(path).parameters())
    assert abs(parameters / wanted - 1) < SLACK, f"{parameters / 1e6:.0f}M"


def recipe(path: Path) -> tuple[float, float, int]:
    """Learning rate, tokens and tokens per row that the papers have for a config's family and size (papers.md 21)."""
    family, size = path.parent.name, path.stem.split("_")[-1]
    if family == "ttt_e2e":
        return {"125m": (3e-3, 2.5e9, 8192), "350m": (1.5e-3, 7e9, 8192), "760m": (1.25e-3, 15e9, 8192)}[size]
    own = {"titans": 4e-4, "transformer": 4e-4, "lact": 1e-3, "tnt": 1e-3}
    rate = own.get(family) or {"170m": 3e-3, "340m": 1.5e-3, "760m": 1.25e-3}[size]
    return rate, 30e9 if size == "760m" else 15e9, 4096


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_its_recipe_is_the_papers(path: Path) -> None:
    config = parse(path).config
    rate, tokens, length = recipe(path)
    assert config.tokens_per_step == 2**19
    assert config.data.init_args.sequence_length == length
    assert config.optimizer.weight_decay == 0.1
    assert config.optimizer.lr == rate
    assert config.trainer.max_steps * config.tokens_per_step == pytest.approx(tokens, rel=1e-3)
    assert config.tokens_per_step % (config.data.init_args.batch_size * length) == 0


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_documents_start_where_the_memory_does(path: Path) -> None:
    config = parse(path).config
    align, pattern = config.data.init_args.get("align"), config.model.pattern
    if align is not None and pattern != ["transformer"]:
        unit = config.model.attention.segment if "titans_mac" in pattern else config.model.memory.chunk_size
        assert align % unit == 0


def test_the_family_is_complete() -> None:
    """Every layer, rule and model has a small config, and one of each size that its papers have."""
    own = ("transformer_400m", *(f"{kind}_400m" for kind in ("mac", "mag", "mal", "lmm")))
    sizes = ("170m", "340m", "760m")
    kinds = ["transformer", "mac", "mag", "mal", "lmm", "hope"]
    kinds += [rule for rule in registry.names("rule") if rule not in ("titans", "delta", "continuum")]
    wanted = {f"{kind}_{size}" for kind in kinds for size in sizes} | set(own)
    wanted |= {f"hope_attention_{size}" for size in sizes} | {f"ttt_e2e_{size}" for size in ("125m", "350m", "760m")}
    wanted |= {"muon_170m", "m3_170m"}
    assert {path.stem for path in PAPER} == wanted
    tiny = {path.stem for path in (ROOT / "configs" / "tiny").glob("*.yaml")}
    short = {name.removeprefix("titans_") for name in registry.names("layer")}
    rules = {"lmm_delta" if rule == "delta" else rule for rule in registry.names("rule") if rule != "titans"}
    assert short | rules | {"ttt_e2e"} <= tiny
    assert {"quickstart", "quickstart_baseline", "quickstart_linear"} <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize("baseline", ["quickstart_baseline.yaml", "quickstart_linear.yaml"])
def test_the_quickstart_and_its_baselines_differ_in_nothing_but_the_memory(baseline: str) -> None:
    ours, theirs = (parse(ROOT / "configs" / name).config for name in ("quickstart.yaml", baseline))
    ours_by_part, theirs_by_part = (config.as_dict() for config in (ours, theirs))
    assert ours_by_part.keys() == theirs_by_part.keys()
    for part in ours_by_part.keys() - {"model", "config", "run"}:
        assert ours_by_part[part] == theirs_by_part[part], part
    sizes = [
        sum(p.numel() for p in build(ROOT / "configs" / name, vocab_size=1024).parameters())
        for name in ("quickstart.yaml", baseline)
    ]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.05)
    if theirs.model.pattern != ["transformer"]:
        assert theirs.model.pattern == ours.model.pattern
        assert theirs.model.memory.rule == "delta"
    assert theirs.model.attention == ours.model.attention


def test_lightning_is_imported_under_one_name() -> None:
    """The older name is another library with the same classes: mixing them fails late, or not at all."""
    other = "pytorch" + "_lightning"
    files = [f for folder in ("neuralmem", "configs", "tests", "benchmarks") for f in (ROOT / folder).rglob("*")]
    texts = [f for f in files if f.suffix in (".py", ".yaml")] + [ROOT / "train.py", ROOT / "pyproject.toml"]
    assert not [f.name for f in texts if re.search(rf"\b{other}\b", f.read_text())]
