"""From options to a training run: the parser, the links between its parts, and the callbacks that every run has."""

import inspect
import json
import logging
import multiprocessing
import sys
import warnings
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NoReturn

import lightning.pytorch as L
import torch
import yaml
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from neuralmem.data import module as data_module
from neuralmem.errors import UserError, nearest
from neuralmem.lock import run_lock
from neuralmem.models.checkpoint import load, refuse_file
from neuralmem.models.pretrained import locate
from neuralmem.provenance import code_version
from neuralmem.training.checkpoints import Checkpoints
from neuralmem.training.compute import Compute
from neuralmem.training.documents import Documents
from neuralmem.training.explain import explain, explain_mismatch, explain_missing
from neuralmem.training.faults import Faults
from neuralmem.training.folder_io import FolderIO, changes
from neuralmem.training.logs import RunLogs
from neuralmem.training.mastery import Mastery
from neuralmem.training.meter import Meter
from neuralmem.training.module import LanguageModel
from neuralmem.training.optim import OptimizerConfig
from neuralmem.training.plot import LossPlot
from neuralmem.training.probes import Probes
from neuralmem.training.progress import Progress
from neuralmem.training.ranks import RankState
from neuralmem.training.report import Report
from neuralmem.training.resume import LAST, find_checkpoint, first_rank, remove_leftovers
from neuralmem.training.signals import Signals

DEFAULTS = {
    "trainer.log_every_n_steps": 10,
    "trainer.gradient_clip_val": 1.0,
    "trainer.num_sanity_val_steps": 0,
    "trainer.check_val_every_n_epoch": None,  # validation counts steps, not epochs
    "trainer.enable_model_summary": False,
}


def train(arguments: list[str]) -> None:
    """Parse, build, train.

    Raises:
        UserError: anything that the user can put right.
    """
    quiet_lightning()
    code_version()  # what was loaded: the files may be others when the first checkpoint is written
    with ExitStack() as held:
        cli = build(arguments, held)
        cli.accumulate()
        if cli.config.ckpt_path == LAST and cli.trainer.is_global_zero:
            where = f"going on from {cli.checkpoint}"
            none = f"no checkpoint in {cli.run}: starting from the beginning"
            print(where if cli.checkpoint else none, file=sys.stderr)
        cli.say_changes()
        cli.begin()
        fit(cli)


def build(arguments: list[str], held: ExitStack) -> "CommandLine":
    """Parse, and make everything that the configuration names.

    Raises:
        UserError: anything that the user can put right.
    """
    try:
        return CommandLine(arguments, held)
    except MisconfigurationException as error:
        raise UserError(" ".join(str(error).split())) from error
    except ValueError as error:  # a class that is named in the configuration cannot be made
        reason = user_error(error) or explain_missing(error)
        if reason is None:
            raise
        raise UserError(str(reason)) from error


def fit(cli: "CommandLine") -> None:
    """Train.

    Raises:
        UserError: the checkpoint is of another model, the data cannot be read, or the last state cannot be saved.
    """
    try:
        cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=cli.checkpoint, weights_only=True)
    except UserError as error:
        end_readers()
        raise UserError(own_words(error)) from error
    except RuntimeError as error:
        end_readers()
        if (cause := user_error(error)) is not None:  # when data cannot begin, Lightning fails once more cleaning up
            raise UserError(own_words(cause)) from error
        if cli.checkpoint is None or "loading state_dict" not in str(error):
            raise
        raise UserError(f"ckpt_path {cli.checkpoint} is of another model: {explain_mismatch(str(error))}") from error


def quiet_lightning() -> None:
    """Silence what Lightning says about itself in every run; its errors still come through."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(lightning|torchdata|jsonargparse)\b.*")
    warnings.filterwarnings("ignore", message=r".*torchdata.*")
    warnings.filterwarnings("ignore", message=r".*does not have many workers.*")


def check_yaml(path: str) -> None:
    """Refuse a file that is no YAML mapping, by name and line.

    Raises:
        UserError: it does not exist, does not parse, or is not a mapping.
    """
    if not Path(path).is_file():
        near = nearest(path, [str(file) for file in Path("configs").rglob("*.yaml")])
        raise UserError(f"config is {path!r}, which is no file{near}")
    try:
        content = yaml.safe_load(Path(path).read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        raise UserError(f"config {path}:{line} no YAML, {getattr(error, 'problem', None) or error}") from None
    if not isinstance(content, dict):
        given = type(content).__name__
        raise UserError(f"config {path} holds a {given}; it must be a mapping such as 'model: {{depth: 4}}'")


class Parser(LightningArgumentParser):
    """The parser, with errors that fit on one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # the parser of one class inside the configuration: the outer one will explain
            super().error(message, ex)
        if (cause := user_error(ex)) is not None:
            raise UserError(str(cause)) from ex
        raise UserError(explain(message, option_names(self), list(data_classes()))) from ex


def user_error(error: BaseException | None) -> UserError | None:
    """The user's error that another one hides, raised for it or while it was dealt with."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error


def own_words(error: UserError) -> str:
    """The message without the traceback that a loader process sends in front of it."""
    text = str(error)
    return text.splitlines()[-1].removeprefix("neuralmem.errors.UserError: ") if text.startswith("Caught ") else text


def end_readers() -> None:
    """Kill loader processes: those that could not begin are told nothing any more, and they ignore a plain SIGTERM, so
    that this process would wait for them for ever."""
    left = multiprocessing.active_children()
    while left:
        with suppress(RuntimeError):  # torch hears of an end and says so, once per loader, in the midst of what runs
            for process in left:
                process.kill()
            for process in left:
                process.join()
            left = []


def data_classes() -> dict[str, type]:
    """The data modules by name."""
    found = {name: cls for name, cls in vars(data_module).items() if inspect.isclass(cls) and not name.startswith("_")}
    return {
        n: cls for n, cls in found.items() if issubclass(cls, L.LightningDataModule) and not inspect.isabstract(cls)
    }


def option_names(parser: LightningArgumentParser) -> list[str]:
    """Every option without its dashes, those of the data modules included."""
    names = [name[2:] for name in parser._option_string_actions if name.startswith("--")]
    for cls in data_classes().values():
        names += [f"data.{name}" for name in inspect.signature(cls).parameters]
    return sorted({*names, "debug"})


class CommandLine(LightningCLI):
    """LightningCLI for `LanguageModel` and any LightningDataModule that has `vocab_size`.

    Args:
        arguments: the options
        held: what the run holds until it ends: its folder's lock
    """

    def __init__(self, arguments: list[str], held: ExitStack) -> None:
        self.held = held
        super().__init__(
            LanguageModel,
            L.LightningDataModule,
            subclass_mode_data=True,
            save_config_callback=None,  # it writes before there is anything to train; FolderIO does it instead
            seed_everything_default=0,
            parser_kwargs={"allow_abbrev": False, "prog": "train.py", "description": "Train a model."},
            args=arguments,
            run=False,
            auto_configure_optimizers=False,
        )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = Parser(**kwargs)
        parser.add_argument("-c", "--config", action="config", help="a YAML file; may be given more than once")
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run", type=str | None, default=None, help="the run's folder")
        parser.add_argument("--ckpt_path", type=str | None, default=None, help="a checkpoint to go on from, or 'last'")
        parser.add_argument("--resume", type=Literal["auto"] | None, default=None, help="auto: as --ckpt_path last")
        parser.add_argument("--init_from", type=str | None, default=None, help="a saved model to begin with")
        parser.add_argument("--init_strict", type=bool, default=True, help="false: of another model take what fits")
        parser.add_argument("--tokens_per_step", type=int | None, default=None, help="batch in tokens over all devices")
        parser.add_class_arguments(OptimizerConfig, "optimizer")
        parser.add_lightning_class_args(Checkpoints, "checkpoint")
        parser.add_lightning_class_args(Mastery, "mastery")
        parser.add_lightning_class_args(Faults, "faults")
        parser.add_lightning_class_args(Compute, "compute")
        parser.add_lightning_class_args(Probes, "probes")
        parser.add_lightning_class_args(Report, "report")
        parser.link_arguments("optimizer", "model.optimizer", apply_on="instantiate")
        parser.link_arguments("data.vocab_size", "model.vocab_size", apply_on="instantiate")
        parser.set_defaults(DEFAULTS)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        for option, value in pairwise([*args, ""]):
            if option in ("-c", "--config") or option.startswith("--config="):
                check_yaml(option.partition("=")[2] or value)
        self.config = parser.parse_args(args)
        configs = self.config.config or []
        self.run = Path(self.config.run or f"runs/{Path(str(configs[0])).stem if configs else 'unnamed'}")
        self.config.run = str(self.run)
        refuse_file("run", self.run)
        if self.config.data.class_path.rpartition(".")[2] == "LightningDataModule":
            raise UserError(
                f"data is 'LightningDataModule', which has no data; it must be one of {', '.join(data_classes())}"
            )
        if self.config.trainer.max_steps == 0:
            raise UserError("trainer.max_steps is 0; it must be a positive integer, or -1 for no limit")
        if self.config.resume is not None:
            if self.config.ckpt_path not in (None, LAST):
                raise UserError(f"resume is 'auto' and ckpt_path is {self.config.ckpt_path!r}; give one of them")
            self.config.ckpt_path = LAST
        if self.config.init_from is not None and self.config.ckpt_path not in (None, LAST):
            raise UserError(
                f"init_from is {self.config.init_from!r} and ckpt_path is {self.config.ckpt_path!r}; give one of them "
                "(--ckpt_path null takes back a config's)"
            )
        if self.config.init_from is None and not self.config.init_strict:
            raise UserError(
                "init_strict is false and init_from is not given; give it, or --init_strict true takes back a config's"
            )
        if first_rank():
            self.held.enter_context(run_lock(self.run))
            remove_leftovers(self.run)
        self.checkpoint = find_checkpoint(self.run, self.config.ckpt_path)

    def _parse_ckpt_path(self) -> None:
        """Nothing: the inherited method lets a checkpoint's hyperparameters replace options, without a word."""

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        meter = Meter()
        trainer = self.config_init.trainer
        config, data = (self.parser.dump(self.config, skip_none=False, format=name) for name in ("yaml", "json"))
        own: list[L.Callback] = [RankState(meter, self.checkpoint), meter, Documents(), LossPlot()]
        if trainer.enable_progress_bar is not False:
            own.append(Progress(meter))
        self.config_init.probes.data = json.loads(data)["data"]
        trainer.callbacks = [*(trainer.callbacks or []), *own]
        trainer.plugins = [*_listed(trainer.plugins), FolderIO(self.run, config, json.loads(data)["data"])]
        trainer.default_root_dir = str(self.run)
        if trainer.logger is not False:  # the run's own beside what the configuration names
            named = [] if trainer.logger in (None, True) else trainer.logger
            loggers = named if isinstance(named, list) else [named]
            trainer.logger = [RunLogs(self.run, resume=self.checkpoint is not None), *loggers]
        built = super().instantiate_trainer(**kwargs)
        # Behind the checkpoints, which Lightning puts last: a step is safe before anything is asked or said about it.
        callbacks: list[L.Callback] = built.callbacks  # type: ignore[attr-defined]
        late = [callback for callback in callbacks if isinstance(callback, Probes | Progress)]
        callbacks[:] = [*(callback for callback in callbacks if callback not in late), *late, Signals()]
        return built

    def accumulate(self) -> None:
        """Set gradient accumulation so that a step sees `tokens_per_step` tokens on all devices together.

        Raises:
            UserError: that is not a whole number of batches.
        """
        data, trainer, wanted = self.datamodule, self.trainer, self.config.tokens_per_step
        if wanted is not None:
            rows = getattr(data, "batch_tokens", None) or data.batch_size * data.length
            batch = rows * trainer.world_size
            if wanted < batch or wanted % batch:
                raise UserError(
                    f"tokens_per_step is {wanted}; it must be a multiple of {batch}: "
                    f"{rows} tokens in a batch on each of {trainer.world_size} device(s)"
                )
            trainer.accumulate_grad_batches = wanted // batch
        if isinstance(trainer.val_check_interval, int):  # Lightning counts batches, people count steps
            trainer.val_check_interval *= trainer.accumulate_grad_batches

    def say_changes(self) -> None:
        """Print what differs from the run that wrote the checkpoint: exact is only what goes on unchanged."""
        if self.checkpoint is None or not self.trainer.is_global_zero:
            return
        config = self.parser.dump(self.config, skip_none=False, format="yaml")
        if differs := changes(self.checkpoint, config):
            print(f"changed since this checkpoint: {', '.join(differs)}", file=sys.stderr)

    def begin(self) -> None:
        """Give a new run the weights of `init_from`; one that goes on from a checkpoint has its own.

        With `init_strict` false a tensor is taken if its name and shape are this model's; the others begin anew.

        Raises:
            UserError: there is no such model, its weights do not fit, or it reads other tokens than the data gives.
        """
        wanted = self.config.init_from
        if wanted is None or self.checkpoint is not None:
            return
        try:
            given, reads = load(wanted)
            weights, here = given.state_dict(), self.model.model.state_dict()
            if not self.config.init_strict:
                weights = {n: x for n, x in weights.items() if n in here and here[n].shape == x.shape}
                if all(tensor.ndim < 2 for tensor in weights.values()):  # a few biases fit everything
                    raise UserError("no matrix of it has name and shape of one of this model")
            self.model.model.load_state_dict(weights, strict=self.config.init_strict)
        except UserError as error:
            raise UserError(f"init_from is {wanted!r}: {error}") from None
        except RuntimeError as error:
            raise UserError(
                f"init_from is {wanted!r}, another model: {explain_mismatch(str(error))}; --init_strict false takes "
                "what fits"
            ) from None
        embeds = bool({"head.weight", "embedding.weight"} & weights.keys())  # else its tokens are not these
        tied = embeds and self.model.model.config.tie_embeddings
        if tied and not torch.equal(given.head.weight, given.embedding.weight):
            raise UserError(
                f"init_from is {wanted!r}, whose head is not its embedding; set model.tie_embeddings to false"
            )
        tokenizer = getattr(self.datamodule, "tokenizer", None)
        if embeds and None not in (reads, tokenizer) and reads != tokenizer:
            raise UserError(
                f"init_from is {wanted!r}, whose tokenizer is not that of the data; set data.tokenizer to "
                f"{str(locate(wanted) / 'tokenizer.json')!r}"
            )
        if self.trainer.is_global_zero:
            print(f"starting with the weights of {wanted}", file=sys.stderr)
            if new := [name for name in here if name not in weights]:
                print(f"not in {wanted}, so new: {', '.join(new)}", file=sys.stderr)
            if unused := [name for name in given.state_dict() if name not in weights]:
                print(f"only in {wanted}, so not used: {', '.join(unused)}", file=sys.stderr)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]
