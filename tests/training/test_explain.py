"""Messages of the parser as one line each. The messages are jsonargparse's own, word for word."""

import pytest

from neuralmem.training.explain import explain, explain_mismatch

OPTIONS = ["data.length", "model.depth", "model.memory.chunk_size", "model.width", "trainer.max_steps"]
CLASSES = ["SyntheticData", "TextData"]
UNION = """Parser key "model.attention.window":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'int'>, <class 'NoneType'>]
  Errors:
    - Expected a <class 'int'>
    - Expected a <class 'NoneType'>
  Given value type: <class 'str'>
  Given value: x"""
DATA_FIELD = """Parser key "data":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'neuralmem.data.module.DataModule'>, <class 'NoneType'>]
  Errors:
    - Problem with given class_path 'neuralmem.data.module.TextData':
        Option 'lenght' is not accepted
    - Expected a <class 'NoneType'>
  Given value type: <class 'jsonargparse._util.NestedArg'>
  Given value: NestedArg(key='lenght', val='4')"""
DATA_VALUE = """Parser key "data":
  Errors:
    - Problem with given class_path 'neuralmem.data.module.TextData':
        Parser key "length":
          Expected a <class 'int'>. Got value: x
    - Expected a <class 'NoneType'>
  Given value type: <class 'jsonargparse._util.NestedArg'>
  Given value: NestedArg(key='length', val='x')"""
DATA_CLASS = """Parser key "data":
  - Expected a path but TextDta either not accessible or invalid
  - Does not validate against any of the Union subtypes
  Errors:
    - Expected a dot import path string: TextDta
    - Expected a <class 'NoneType'>
  Given value: TextDta"""
ABSTRACT = """Parser key "data":
  - Expected a path but DataModule either not accessible or invalid
  - Does not validate against any of the Union subtypes
  Errors:
    - Expected an instantiatable class, but is abstract
    - Expected a <class 'NoneType'>
  Given value: DataModule"""
ABSTRACT_IN_YAML = """Parser key "data":
  Errors:
    - Expected an instantiatable class, but DataModule is abstract
    - Expected a <class 'NoneType'>
  Given value: {'class_path': 'DataModule', 'init_args': {'align': 16}}"""
LITERAL = """Parser key "model.attention.backend":
  Expected a typing.Literal['auto', 'flash_attn', 'flex']. Got value: flash"""


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("unrecognized arguments: --model.depht 4", "--model.depht is not an option; did you mean '--model.depth'?"),
        ("unrecognized arguments: --model.depht=4", "--model.depht is not an option; did you mean '--model.depth'?"),
        ("unrecognized arguments: stray", "'stray' is not an option; options begin with --"),
        ("Group 'model' does not accept option 'widht'", "model has no field 'widht'; did you mean 'width'?"),
        (
            "Group 'model' does not accept option 'memory.chunk_sise'",
            "model.memory has no field 'chunk_sise'; did you mean 'chunk_size'?",
        ),
        ("Option 'modle.depth' is not accepted", "the configuration has no field 'modle'; did you mean 'model'?"),
        ("argument --model.depth: expected one argument", "--model.depth needs a value"),
        (UNION, "model.attention.window is 'x'; it must be an integer or null"),
        (DATA_FIELD, "data has no field 'lenght'; did you mean 'length'?"),
        (DATA_VALUE, "data.length is 'x'; it must be an integer"),
        (DATA_CLASS, "data is 'TextDta'; it must be one of SyntheticData, TextData; did you mean 'TextData'?"),
        (ABSTRACT, "data is 'DataModule'; it must be one of SyntheticData, TextData"),
        (ABSTRACT_IN_YAML, "data is 'DataModule'; it must be one of SyntheticData, TextData"),
        (
            LITERAL,
            "model.attention.backend is 'flash'; it must be one of auto, flash_attn, flex; did you mean 'flash_attn'?",
        ),
        ("something\n  nobody  foresaw", "something nobody foresaw"),
    ],
)
def test_one_line(message: str, line: str) -> None:
    assert explain(message, OPTIONS, CLASSES) == line


@pytest.mark.parametrize(
    ("problem", "line"),
    [
        (
            '\tMissing key(s) in state_dict: "a.b", "a.c". \n\tUnexpected key(s) in state_dict: "d". ',
            "it lacks tensor a.b",
        ),
        ('\tUnexpected key(s) in state_dict: "d", "e". ', "it has tensor d, the model has not"),
        (
            "\tsize mismatch for a.b: copying a param with shape torch.Size([4, 2]) from checkpoint, the shape in "
            "current model is torch.Size([4]).\n\tsize mismatch for c: copying a param with shape ...",
            "its tensor a.b has shape [4, 2], the model's [4]",
        ),
        ("something\n nobody foresaw", "something nobody foresaw"),
    ],
)
def test_the_first_tensor_of_another_model(problem: str, line: str) -> None:
    assert explain_mismatch(problem) == line


def test_a_message_nobody_foresaw_stays_short() -> None:
    assert len(explain("word " * 1000, OPTIONS, CLASSES)) <= 300
