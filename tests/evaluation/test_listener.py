"""Scripts against a real model: what a listener says is what reading everything by hand gives."""

import pytest
import torch
from torch import Tensor

from neuralmem.config import AttentionConfig, MemoryConfig, ModelConfig
from neuralmem.errors import UserError
from neuralmem.evaluation.listener import Listener, Reply
from neuralmem.evaluation.script import Question, Script, Writer
from neuralmem.models.causal_lm import CausalLM
from neuralmem.tokenizer import ByteTokenizer

Q = Question((9, 8, 7), (6, 5), told=10)


def model(*pattern: str) -> CausalLM:
    torch.manual_seed(0)
    attention = AttentionConfig(heads=2, window=8, segment=8)
    memory = MemoryConfig(heads=1, chunk_size=8, theta_bias=2.0)
    names = list(pattern)
    config = ModelConfig(vocab_size=257, width=16, depth=len(names), pattern=names, attention=attention, memory=memory)
    built = CausalLM(config).double()
    with torch.no_grad():  # away from the initial zeros, or nothing is seen to be learned
        for x in built.parameters():
            x.add_(0.2 * torch.randn_like(x))
    return built


def listener(of: CausalLM, chunk: int = 4096) -> Listener:
    return Listener(of, ByteTokenizer(), chunk, segment=of.config.attention.segment)


def tokens(seed: int, count: int) -> list[int]:
    return torch.randint(256, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def nll(logits: Tensor, answer: tuple[int, ...]) -> float:
    """Logits Float[T, V] whose last len(answer) predict the answer."""
    return -sum(logits[i - len(answer)].log_softmax(-1)[a].item() for i, a in enumerate(answer))


def ask(of: CausalLM, script: Script, ablation: str = "none") -> list[Reply]:
    return listener(of).listen([script], ablation)[0][0]


@torch.no_grad()
def by_hand(of: CausalLM, text: list[int], memory: str = "on") -> float:
    logits, _ = of(torch.tensor([[*text, *Q.tokens, *Q.answer[:-1]]]), memory=memory)
    return nll(logits[0], Q.answer)


def one(text: list[int], number: int = 0) -> Script:
    writer = Writer()
    writer.read(text)
    writer.ask(Q)
    return writer.script(number)


@pytest.mark.parametrize("pattern", [("titans_mag", "transformer"), ("titans_mac",), ("titans_lmm",)], ids=str)
@pytest.mark.parametrize("ablation", ["none", "frozen", "off"])
def test_a_reply_is_what_reading_everything_gives(pattern: tuple[str, ...], ablation: str) -> None:
    built, text = model(*pattern), tokens(1, 75)
    [reply] = ask(built, one(text), ablation)
    memory = {"none": "on"}.get(ablation, ablation)
    assert reply.nll == pytest.approx(by_hand(built, text, memory), abs=1e-5)
    assert reply.distance == 75 + 3 - 10
    assert not reply.seen


def test_reset_is_a_fresh_state() -> None:
    built = model("titans_mag")
    [reply] = ask(built, one(tokens(1, 75)), "reset")
    assert reply.nll == pytest.approx(by_hand(built, []), abs=1e-5)


def test_asking_leaves_no_trace() -> None:
    built, writer = model("titans_mag"), Writer()
    for part in (tokens(2, 20), tokens(3, 13)):
        writer.read(part)
        writer.ask(Q, Question((1,), (2,)))
    replies = ask(built, writer.script())
    assert replies[0].nll == pytest.approx(by_hand(built, tokens(2, 20)), abs=1e-5)
    assert replies[2].nll == pytest.approx(by_hand(built, tokens(2, 20) + tokens(3, 13)), abs=1e-5)


@pytest.mark.parametrize("ablation", ["none", "frozen"])
def test_what_is_kept_stays_in_the_text(ablation: str) -> None:
    built, writer = model("titans_mag"), Writer()
    writer.read(tokens(2, 20))
    writer.ask_and_keep(Question((1, 2), (3, 4, 5), told=8))
    writer.read(tokens(3, 6))
    writer.ask_and_keep(Q)
    script = writer.script()
    assert script.tokens == 20 + 5 + 6 + 5
    text = [*tokens(2, 20), 1, 2, 3, 4, 5, *tokens(3, 6)]
    replies = ask(built, script, ablation)
    assert replies[1].nll == pytest.approx(by_hand(built, text, {"none": "on"}.get(ablation, ablation)), abs=1e-5)
    assert replies[0].distance == 22 - 8


def test_side_by_side_and_in_pieces_is_the_same() -> None:
    built = model("titans_mag", "transformer")
    scripts = [one(tokens(i, 30 + 7 * i), i) for i in range(4)]
    for ablation in ("none", "off"):
        together, _ = listener(built, chunk=16).listen(scripts, ablation)
        alone = [ask(built, script, ablation) for script in scripts]
        assert [r[0].nll for r in together] == pytest.approx([r[0].nll for r in alone], abs=1e-5)
        assert [r[0].right for r in together] == [r[0].right for r in alone]


@torch.no_grad()
def test_a_dropped_session_leaves_its_memory_alone() -> None:
    built, writer = model("titans_mag"), Writer()
    writer.read(tokens(2, 20))
    writer.drop()
    writer.read(tokens(3, 4))
    writer.ask(Q, Question((9,), (8,), told=22))
    script = writer.script()
    _, state = built(torch.tensor([tokens(2, 20)]))
    later = torch.tensor([[*tokens(3, 4), *Q.tokens, *Q.answer[:-1]]])
    kept, nothing = (built(later, x)[0][0] for x in (built.memory_only(state), None))
    replies = ask(built, script)
    assert replies[0].nll == pytest.approx(nll(kept, Q.answer), abs=1e-5)
    assert [reply.seen for reply in replies] == [False, True], "only what the last session told is seen"
    for ablation in ("frozen", "off"):
        logits, _ = built(later, memory=ablation)
        assert ask(built, script, ablation)[0].nll == pytest.approx(nll(logits[0], Q.answer), abs=1e-5)
    assert abs(nll(kept, Q.answer) - nll(nothing, Q.answer)) > 1e-4


def test_an_answer_is_exact_where_greedy_decoding_gives_it() -> None:
    built, text = model("titans_mag"), tokens(5, 20)
    greedy: list[int] = []
    with torch.no_grad():
        for _ in range(3):
            logits, _ = built(torch.tensor([[*text, 1, *greedy]]))
            greedy.append(int(logits[0, -1].argmax()))
    writer = Writer()
    writer.read(text)
    writer.ask(Question((1,), tuple(greedy)), Question((1,), (*greedy[:2], (greedy[2] + 1) % 256)))
    replies = ask(built, writer.script())
    assert [reply.exact for reply in replies] == [True, False]
    assert replies[1].right == (True, True, False)


def test_scripts_that_do_not_go_together_are_refused() -> None:
    writer = Writer()
    writer.read([1])
    with pytest.raises(UserError, match="scripts have steps of 2 kinds"):
        listener(model("titans_lmm")).listen([writer.script(), one([1])], "none")


def test_the_hash_is_of_everything() -> None:
    def script(text: list[int], question: Question, drop: bool = False) -> str:
        writer = Writer()
        writer.read(text)
        if drop:
            writer.drop()
        writer.ask(question)
        return writer.script().sha256

    same = script([1, 2], Q)
    assert same == script([1, 2], Q)
    others = [script([1, 3], Q), script([1, 2], Question((9, 8), (6, 5))), script([1, 2], Q, drop=True)]
    assert len({same, *others}) == 4
