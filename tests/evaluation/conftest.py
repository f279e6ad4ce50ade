"""What the tests of evaluation share: an oracle instead of a trained model, and small haystacks in files."""

import json
from pathlib import Path

import pytest
import torch

from neuralmem.config import AttentionConfig, MemoryConfig, ModelConfig
from neuralmem.data.needle_format import NeedleFormat
from neuralmem.evaluation.facts import Facts
from neuralmem.evaluation.grammar import sentences
from neuralmem.evaluation.niah import Settings
from neuralmem.evaluation.prompts import find_task
from neuralmem.evaluation.reader import ABLATIONS
from neuralmem.evaluation.recall import TrainingData
from neuralmem.evaluation.rows import Subject
from neuralmem.models.causal_lm import CausalLM
from neuralmem.models.checkpoint import save
from neuralmem.tokenizer import ByteTokenizer
from tests.evaluation.fake import Oracle

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lines of sentences, as a user's file."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    lines = (sentence for _, sentence in zip(range(2000), sentences(1), strict=False))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def training(text_file: Path) -> TrainingData:
    """A checkpoint trained on facts in that file."""
    return TrainingData(length=256, source=str(text_file), form=NeedleFormat(key_tokens=0, keys_held_out=0.1))


@pytest.fixture(scope="session")
def facts(text_file: Path) -> Facts:
    """Those told of that file, in bytes."""
    training = TrainingData(length=256, source=str(text_file), form=NeedleFormat(key_tokens=0))
    return Facts(training, ByteTokenizer(), f"file:{text_file}")


@pytest.fixture
def oracle() -> Oracle:
    return Oracle(reach=300)


@pytest.fixture
def subject(oracle: Oracle) -> Subject:
    return Subject(oracle.reach, oracle.tokenizer.fingerprint, "c" * 64, 32, 32, "float32", "cpu")


@pytest.fixture
def settings() -> Settings:
    """A run that takes a second."""
    return Settings(
        tasks=(find_task("s-niah-n"),),
        lengths=(1024, 2048),
        samples=(10,),
        haystacks=("grammar",),
        ablations=ABLATIONS,
        max_new_tokens=12,
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    """A run of a byte-level model, untrained, of one layer with a memory."""
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=257,
        width=16,
        depth=1,
        attention=AttentionConfig(heads=1, window=16),
        memory=MemoryConfig(heads=1, chunk_size=16),
    )
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    save(folder, CausalLM(config), ByteTokenizer())
    data = {"stages": [{"length": 256, "facts": 5}], "source": str(text_file), "form": {"key_tokens": 0}}
    (folder / "data.json").write_text(json.dumps({"class_path": "NeedleData", "init_args": data}))
    return folder
