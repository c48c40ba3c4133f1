"""A recipe: what is to be patched and how, as data in a directory. It holds no weights and nothing that could run."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..errors import DataError, SparsifyError, UsageError
from ..files import cannot_write, locked, read_file, read_member, sha256, write_set
from ..strict_json import check_texts, parse_json, shortened, shown
from .methods import Method, exact_top_k, method_from_dict, method_to_dict
from .tensor_file import MALFORMED, reason
from .thresholds import MOST_BYTES as MOST_THRESHOLDS
from .thresholds import ModuleThresholds, parse_thresholds, thresholds_bytes, unreadable

SCHEMA_VERSION = 1  # of sparsify.json, see recipe.schema.json
RECIPE_FILE = "sparsify.json"
THRESHOLDS_FILE = "thresholds.safetensors"
DEFAULT_RECIPE = "sparsified"

# A recipe may be a stranger's.
MOST_BYTES = 2**24  # of sparsify.json; a plan of 10,000 modules and the items of 100,000 questions have 4 MB
MOST_MODULES = 10_000
MOST_WHOLE = 2**63 - 1
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)

Plan = dict[str, Method]


@dataclass(frozen=True)
class BaseModel:
    """The dense model that a recipe is for.

    id: a Hub name, a local folder or a demo model. revision: the commit it was resolved to, None for a local folder.
    config_hash: over the configuration's shape fields. gguf_file: the file inside the model, if it is a GGUF one.
    """

    id: str
    task: str
    model_type: str
    config_hash: str
    revision: str | None = None
    gguf_file: str | None = None


@dataclass(frozen=True)
class CalibrationRecord:
    """What the thresholds were fitted on, and how. budget: "k = 64" or the like, several joined by ", ".

    items: a hash of each item that was used, so that an evaluation notices those that it asks again. placement to
    activations: see CalibrationOptions. distractors: passages around each item's own. weights: fingerprint of the
    model's, "" where it is not known. histograms_sha256: of the file that the thresholds were read from.
    """

    dataset: str
    split: str
    fingerprint: str
    samples: int
    seed: int
    budget: str
    items: tuple[str, ...] = ()
    placement: str = "post-softmax"
    estimator: str = "count-matched"
    alpha: float = 0.0
    activations: str = "sparse"
    distractors: int = 0
    weights: str = ""
    histograms_sha256: str = ""


@dataclass(frozen=True)
class Recipe:
    """Plan per module name; thresholds for the modules that have them; the plan before calibration, if any."""

    base_model: BaseModel
    plan: Plan
    thresholds: dict[str, ModuleThresholds] = field(default_factory=dict)
    calibration: CalibrationRecord | None = None
    before_calibration: Plan | None = None
    versions: dict[str, str] = field(default_factory=dict)

    def as_top_k(self) -> Recipe:
        """The recipe as it was before calibration, with exact top-k for top-theta. UsageError if never calibrated."""
        if self.before_calibration is None:
            raise UsageError("the recipe was not calibrated, so it has no plan from before calibration")
        plan = {name: exact_top_k(method) for name, method in self.before_calibration.items()}
        return replace(self, plan=plan, thresholds={}, calibration=None, before_calibration=None)

    def to_dict(self) -> dict[str, Any]:
        """The content of sparsify.json."""
        return {
            "schema_version": SCHEMA_VERSION,
            "base_model": asdict(self.base_model),
            "plan": {name: method_to_dict(method) for name, method in self.plan.items()},
            "calibration": asdict(self.calibration) if self.calibration else None,
            "before_calibration": (
                {name: method_to_dict(method) for name, method in self.before_calibration.items()}
                if self.before_calibration
                else None
            ),
            "versions": self.versions,
        }


def is_recipe(path: str | Path) -> bool:
    """Whether a directory holds a recipe."""
    return os.path.isfile(Path(path) / RECIPE_FILE)


def save_recipe(
    recipe: Recipe, directory: str | Path, *, force: bool = False, beside: Mapping[str, bytes | None] | None = None
) -> Path:
    """Writes a recipe, and returns its directory. Who reads it at any time, also after a kill, finds all of the old one
    or all of the new one; processes that write the same directory take turns.

    beside: further files of the directory, by name, that the recipe names by their hash; None removes one. UsageError
    if the directory already holds a recipe and `force` is off, or for a name that a recipe cannot hold; SparsifyError
    if it cannot be written.
    """
    target = Path(directory)
    check_writable(target, force=force)
    thresholds = thresholds_bytes(recipe.thresholds) if recipe.thresholds else None
    content = {**recipe.to_dict(), "thresholds_sha256": None if thresholds is None else sha256(thresholds)}
    try:
        check_texts(content)
    except DataError as error:
        raise UsageError(f"a recipe cannot hold this name: {error}") from None
    text = (json.dumps(content, indent=2) + "\n").encode()
    try:
        write_set(target, {**(beside or {}), THRESHOLDS_FILE: thresholds, RECIPE_FILE: text}, last=RECIPE_FILE)
    except OSError as error:
        raise cannot_write("recipe", target, error) from None
    return target


def check_writable(target: Path, *, force: bool) -> None:
    """Says before any work whether a recipe can be written to a directory (errors as in save_recipe)."""
    if is_recipe(target) and not force:
        raise UsageError(
            f"{target} already holds another recipe: use --force to replace it, or -o for another directory"
        )
    check_place(target, "recipe")


def check_place(target: Path, what: str) -> None:
    """SparsifyError if a directory can neither be written nor made where it is to be."""
    try:
        # Also a link that leads nowhere is in the way.
        parent = next(path for path in [target, *target.absolute().parents] if path.is_symlink() or path.exists())
    except OSError as error:  # such as a name that is too long
        raise cannot_write(what, target, error) from None
    if not parent.is_dir():
        kind = "a file" if parent.exists() else "a link that leads nowhere"
        raise SparsifyError(f"cannot write the {what} to {target}: {'it' if parent == target else parent} is {kind}")
    if not os.access(parent, os.W_OK):
        raise SparsifyError(f"cannot write the {what} to {target}: {parent} is not writable")


def load_recipe(directory: str | Path) -> Recipe:
    """Reads a recipe. DataError says what is missing or malformed; nothing in the directory is executed, and no name in
    it is taken for the path of a file."""
    place = Path(directory)
    path = place / RECIPE_FILE
    try:
        with locked(place, shared=True):
            data = parse_json(read_file(path, MOST_BYTES))
            check_texts(data)
            digest = data.get("thresholds_sha256") if isinstance(data, dict) else None
            thresholds = _read_thresholds(place, digest) if isinstance(digest, str) else None
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{place} holds no recipe ({RECIPE_FILE}): make one with `sparsify patch MODEL`") from None
    except _ThresholdsError as error:
        raise DataError(str(error)) from None
    except (OSError, DataError) as error:
        raise DataError(f"{path} cannot be read: {str(error).removeprefix(f'{path} ')}") from None
    try:
        recipe = _parse(data)
    except MALFORMED as error:
        raise DataError(f"{path} is malformed: {reason(error)}") from None
    if thresholds is None:
        return recipe
    tables = parse_thresholds(thresholds, place / THRESHOLDS_FILE)
    return replace(recipe, thresholds={name: table for name, table in tables.items() if name in recipe.plan})


class _ThresholdsError(Exception):
    """sparsify.json is there and what it names is not."""


def _read_thresholds(directory: Path, digest: str) -> bytes:
    try:
        return read_member(directory, THRESHOLDS_FILE, digest, MOST_THRESHOLDS)
    except (OSError, DataError) as error:
        raise _ThresholdsError(unreadable(directory / THRESHOLDS_FILE, error)) from None


def _parse(data: Any) -> Recipe:
    """All but the thresholds."""
    version = _object("the recipe", data)["schema_version"]
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise UsageError(f"schema version {shown(version)} is not {SCHEMA_VERSION}: use the hf-sparsify that wrote it")
    versions = _object("versions", data["versions"])
    if any(not isinstance(value, str) for value in versions.values()):
        raise UsageError("versions are texts")
    if not isinstance(data["thresholds_sha256"], str | None):
        raise UsageError(f"thresholds_sha256 is {shown(data['thresholds_sha256'])}")
    calibration, before = data["calibration"], data["before_calibration"]
    return Recipe(
        base_model=_base_model(data["base_model"]),
        plan=_plan(data["plan"]),
        calibration=None if calibration is None else _record(CalibrationRecord, calibration),
        before_calibration=None if before is None else _plan(before),
        versions=versions,
    )


def _base_model(data: Any) -> BaseModel:
    """A base model, which is on the Hub or in a folder with its full path: what depends on where a command is typed is
    nothing that another person could have meant."""
    base: BaseModel = _record(BaseModel, data)
    if not HUB_NAME.fullmatch(base.id) and not Path(base.id).is_absolute():
        raise UsageError(f"the base model {shown(base.id)} is neither a name on the Hub nor a full path")
    if base.gguf_file is not None and (Path(base.gguf_file).is_absolute() or ".." in Path(base.gguf_file).parts):
        raise UsageError(f"gguf_file is {shown(base.gguf_file)}, which is not inside the model")
    return base


def _plan(data: Any) -> Plan:
    if not _object("the plan", data):
        raise UsageError("the plan names no module")
    if len(data) > MOST_MODULES:
        raise UsageError(f"the plan names more than {MOST_MODULES} modules")
    return {name: method_from_dict(_object(f"the plan's {shortened(name)}", entry)) for name, entry in data.items()}


def _object(what: str, data: Any) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise UsageError(f"{what} is {shown(data)} instead of an object with names and values")
    return data


_TYPES: dict[str, Any] = {
    "str": str,
    "int": int,
    "float": float | int,
    "str | None": str | None,
    "tuple[str, ...]": list,
}


def _record(kind: Any, data: Any) -> Any:
    """A record from its dict, unknown keys dropped (a newer version may have written them)."""
    known = {item.name: item.type for item in fields(kind)}
    given = {key: value for key, value in _object(kind.__name__, data).items() if key in known}
    for item in fields(kind):
        if item.default is MISSING and item.name not in given:
            raise KeyError(item.name)
    for key, value in given.items():
        if not isinstance(value, _TYPES[str(known[key])]) or not _is_plain(value):
            raise UsageError(f"{key} is {shown(value)}")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in given.items()})


def _is_plain(value: Any) -> bool:
    """A list of texts alone, no whole number beyond what other programs know, and no truth value for a number."""
    if isinstance(value, list):
        return all(isinstance(part, str) for part in value)
    return not isinstance(value, bool) and (not isinstance(value, int) or abs(value) <= MOST_WHOLE)
