"""The curriculum moves when it should, and remembers where it was."""

from types import SimpleNamespace

import pytest
import torch

from neuralmem.data.synthetic import Recall, Stage
from neuralmem.errors import UserError
from neuralmem.training.mastery import Mastery


def trainer_with(data: object) -> SimpleNamespace:
    said: list[str] = []
    strategy = SimpleNamespace(reduce=lambda x, reduce_op: x)
    loader = SimpleNamespace(dataset=data)
    return SimpleNamespace(train_dataloader=loader, strategy=strategy, global_step=7, said=said)


def stages() -> Recall:
    return Recall([Stage(keys=4, length=16, facts=2, questions=2, mastery=0.8), Stage(length=24, facts=2, questions=2)])


def feed(mastery: Mastery, trainer: SimpleNamespace, exact: int, length: int = 16, times: int = 1) -> None:
    batch = SimpleNamespace(tokens=torch.zeros(1, length))
    for _ in range(times):
        outputs = {"exact": torch.tensor(exact), "asked": torch.tensor(10)}
        mastery.on_train_batch_end(trainer, SimpleNamespace(print=trainer.said.append), outputs, batch, 0)


def test_a_stage_ends_when_it_is_mastered() -> None:
    data, mastery = stages(), Mastery(steps=3)
    trainer = trainer_with(data)
    feed(mastery, trainer, 10, times=2)
    assert data.stage == 0  # too few to be sure
    feed(mastery, trainer, 1)
    assert data.stage == 0
    feed(mastery, trainer, 9, times=3)
    assert data.stage == 1
    assert trainer.said == ["step 7: stage 1 of 2 mastered with 90.0%; next: all keys, length 24"]


def test_the_last_stage_stays() -> None:
    data, mastery = stages(), Mastery(steps=1)
    trainer = trainer_with(data)
    feed(mastery, trainer, 10)
    feed(mastery, trainer, 10, length=24, times=3)
    assert data.stage == 1
    assert len(trainer.said) == 1


def test_rows_of_another_length_do_not_count() -> None:
    data, mastery = stages(), Mastery(steps=1)
    feed(mastery, trainer_with(data), 10, length=99)
    assert data.stage == 0


def test_ranks_that_drew_another_length_reduce_as_well() -> None:
    data, mastery = stages(), Mastery(steps=1)
    trainer = trainer_with(data)
    own: list[list[float]] = []

    def reduce(counts: torch.Tensor, reduce_op: str) -> torch.Tensor:
        own.append(counts.tolist())
        return counts + torch.tensor([9.0, 10.0])  # what the other rank has

    trainer.strategy.reduce = reduce
    feed(mastery, trainer, 1, length=99)
    assert own == [[0.0, 0.0]]
    assert data.stage == 1


def test_its_state_is_part_of_a_checkpoint() -> None:
    data, first, second = stages(), Mastery(steps=3), Mastery(steps=3)
    feed(first, trainer_with(data), 9, times=2)
    second.load_state_dict(first.state_dict())
    feed(second, trainer_with(data), 9)
    assert data.stage == 1


def test_other_data_is_left_alone() -> None:
    feed(Mastery(steps=1), trainer_with(object()), 10)


def test_steps_must_be_positive() -> None:
    with pytest.raises(UserError, match=r"mastery.steps is 0"):
        Mastery(steps=0)
