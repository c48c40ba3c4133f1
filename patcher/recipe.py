"""A recipe: what is to be patched and how, as data in a directory. It holds no weights and nothing that could run."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..errors import DataError, SparsifyError, UsageError
from .methods import Method, exact_top_k, method_from_dict, method_to_dict
from .thresholds import ModuleThresholds, load_thresholds, save_thresholds

SCHEMA_VERSION = 1
RECIPE_FILE = "sparsify.json"
THRESHOLDS_FILE = "thresholds.safetensors"
DEFAULT_RECIPE = "sparsified"

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
    return (Path(path) / RECIPE_FILE).is_file()


def save_recipe(recipe: Recipe, directory: str | Path, *, force: bool = False) -> Path:
    """Writes a recipe. What a kill leaves behind is the old recipe, the new one, or one that loading refuses.

    UsageError if the directory already holds a recipe and `force` is off; SparsifyError if it cannot be written.
    """
    target = Path(directory)
    check_writable(target, force=force)
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target, prefix=".writing-") as scratch:
            made = Path(scratch)
            content = {**recipe.to_dict(), "thresholds_sha256": None}
            if recipe.thresholds:
                save_thresholds(recipe.thresholds, made / THRESHOLDS_FILE)
                content["thresholds_sha256"] = _sha256(made / THRESHOLDS_FILE)
            (made / RECIPE_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            if recipe.thresholds:
                os.replace(made / THRESHOLDS_FILE, target / THRESHOLDS_FILE)
            os.replace(made / RECIPE_FILE, target / RECIPE_FILE)
            if not recipe.thresholds:
                (target / THRESHOLDS_FILE).unlink(missing_ok=True)
    except OSError as error:
        raise SparsifyError(f"cannot write the recipe to {target}: {error.strerror or error}") from None
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
    parent = next(path for path in [target, *target.absolute().parents] if path.exists())
    if not parent.is_dir():
        raise SparsifyError(f"cannot write the {what} to {target}: {'it' if parent == target else parent} is a file")
    if not os.access(parent, os.W_OK):
        raise SparsifyError(f"cannot write the {what} to {target}: {parent} is not writable")


def load_recipe(directory: str | Path) -> Recipe:
    """Reads a recipe. DataError says what is missing or malformed; nothing in the directory is executed."""
    path = Path(directory) / RECIPE_FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{directory} holds no recipe ({RECIPE_FILE}): make one with `sparsify patch MODEL`") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    try:
        return _parse(data, Path(directory))
    except (KeyError, TypeError, AttributeError, UsageError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{path} is malformed: {reason}") from None


def _parse(data: Any, directory: Path) -> Recipe:
    version = _object("the recipe", data)["schema_version"]
    _object("versions", data["versions"])
    if version != SCHEMA_VERSION:
        raise UsageError(f"schema version {version!r} is not {SCHEMA_VERSION}: use the hf-sparsify that wrote it")
    calibration, before = data["calibration"], data["before_calibration"]
    plan = _plan(data["plan"])
    digest = data["thresholds_sha256"]
    thresholds = {} if digest is None else load_thresholds(directory / THRESHOLDS_FILE)
    if digest is not None and digest != _sha256(directory / THRESHOLDS_FILE):
        raise UsageError(f"{THRESHOLDS_FILE} belongs to another calibration: patch and calibrate again")
    return Recipe(
        base_model=_record(BaseModel, data["base_model"]),
        plan=plan,
        thresholds={name: table for name, table in thresholds.items() if name in plan},
        calibration=_record(CalibrationRecord, calibration) if calibration else None,
        before_calibration=_plan(before) if before else None,
        versions={str(name): str(value) for name, value in data["versions"].items()},
    )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _plan(data: Any) -> Plan:
    if not _object("the plan", data):
        raise UsageError("the plan names no module")
    return {name: method_from_dict(_object(f"the plan's {name}", entry)) for name, entry in data.items()}


def _object(what: str, data: Any) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise UsageError(f"{what} is {data!r} instead of an object with names and values")
    return data


_TYPES: dict[str, Any] = {
    "str": str,
    "int": int,
    "float": float | int,
    "str | None": str | None,
    "tuple[str, ...]": list | tuple,
}


def _record(kind: Any, data: dict[str, Any]) -> Any:
    """A record from its dict, unknown keys dropped (a newer version may have written them)."""
    known = {item.name: item.type for item in fields(kind)}
    _object(kind.__name__, data)
    for item in fields(kind):
        if item.default is MISSING and item.name not in data:
            raise KeyError(item.name)
    for key, value in data.items():
        if key in known and not isinstance(value, _TYPES[str(known[key])]):
            raise UsageError(f"{key} is {value!r}")
    plain = {key: tuple(map(str, value)) if isinstance(value, list) else value for key, value in data.items()}
    return kind(**{key: value for key, value in plain.items() if key in known})
