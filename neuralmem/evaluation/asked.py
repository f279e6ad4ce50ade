"""settings.json of a folder: what every run into it asked, and whom; by it `verify` tells which rows must be there.

Special: a run that is started again with the same settings takes the place of its first start; the runs before it stay,
under `earlier`.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from neuralmem import durable
from neuralmem.durable import reason
from neuralmem.errors import UserError
from neuralmem.evaluation.journal import refuse_others_results
from neuralmem.evaluation.niah import Settings
from neuralmem.evaluation.prompts import find_task
from neuralmem.evaluation.rows import Row, Subject

FILE = "settings.json"


@dataclass(frozen=True)
class Respondent:
    """Whom a run asked.

    Args:
        name, series: in the table of baselines; see `comparison.Contender`
        subject: as its rows name it
        ablations: under which
    """

    name: str
    series: str
    subject: Subject
    ablations: tuple[str, ...]

    def said(self, row: Row) -> bool:
        """Whether a row is of it, whatever it was asked."""
        of_both = ("ckpt_sha256", "chunk_size_eval", "dtype", "baseline")  # as in `Row.identity`
        same = all(getattr(row, name) == getattr(self.subject, name) for name in of_both)
        return same and row.ablation in self.ablations


@dataclass(frozen=True)
class NeedleRun:
    """What was asked, whom, and which table the answers are in; the first who was asked is the checkpoint itself."""

    settings: Settings
    asked: tuple[Respondent, ...]
    table: str


def write_runs(out: Path, run: NeedleRun, measured_reach: int | None) -> None:
    """Make the folder and write what is about to be asked into it, with the reach that was measured.

    Raises:
        UserError: the folder cannot be written, or holds results of another evaluation.
    """
    refuse_others_results(out, "niah" if run.table == "table.csv" else "baselines")
    about = asdict(run.settings) | {"table": run.table, "asked": [asdict(one) for one in run.asked]}
    content, before = json.loads(json.dumps(about)), settings_before(out)
    runs = [*before.pop("earlier", []), before]
    earlier = [one for one in runs if _says_who(one) and not content.items() <= one.items()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        content |= {"measured_reach": measured_reach} | ({"earlier": earlier} if earlier else {})
        durable.write_file(out / FILE, json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"--out is {str(out)!r}, which cannot be written: {error.strerror}") from None


def settings_before(out: Path) -> dict[str, Any]:
    """What settings.json of a folder holds; {} where there is none.

    Raises:
        UserError: it cannot be read, or is not what a needle run writes.
    """
    path = out / FILE
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(run, dict) for run in [given, *given.get("earlier", ())]):
            raise TypeError("it is no object with a list of others")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"--out has {path}, which cannot be read: {reason(error)}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise _no_settings(path, error) from None
    return given


def _no_settings(path: Path, error: Exception) -> UserError:
    said = " ".join(str(error).split())
    return UserError(f"--out has {path}, which is no settings of eval.py niah: {said}; give another folder")


def read_runs(out: Path) -> list[NeedleRun]:
    """All runs into a folder, the last one first.

    Raises:
        UserError: they are not of a needle run, or of a version that did not say who was asked.
    """
    path, given = out / FILE, settings_before(out)
    try:
        runs = [given, *given.get("earlier", ())]
        silent = "tasks" in given and not all(map(_says_who, runs))
        found = [] if silent else [_run(one) for one in runs]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _no_settings(path, error) from None
    if silent:
        raise UserError(
            f"--out has {path}, which does not say who was asked, as those of earlier versions; give all commands that "
            "made it again, which asks nothing twice"
        )
    return found


def _says_who(run: Mapping[str, Any]) -> bool:
    """Whether a run was asked of those that it names, as those of earlier versions were not."""
    return bool(run.get("asked")) and all("subject" in one for one in run["asked"])


def _run(given: Mapping[str, Any]) -> NeedleRun:
    values = _values(Settings, given)
    values["tasks"] = tuple(find_task(task["name"]) for task in given["tasks"])
    asked = [_values(Respondent, one) | {"subject": Subject(**one["subject"])} for one in given["asked"]]
    return NeedleRun(Settings(**values), tuple(Respondent(**one) for one in asked), given["table"])


def _values(kind: type, given: Mapping[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(kind)} & set(given)
    return {name: tuple(v) if isinstance(v := given[name], list) else v for name in names}
