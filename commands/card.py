"""The model card of a recipe: what it patches, what was measured, how to load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..evaluation.demo import DEMO_MODELS
from ..evaluation.journal import RESULTS, ended_run
from ..patcher.methods import method_to_dict
from ..patcher.plan import describe_plan
from ..patcher.recipe import Recipe
from ..strict_json import UNPRINTABLE

MARK = "<!-- written by `sparsify push` -->"  # a card without it is a person's own


def model_card(recipe: Recipe, directory: Path, repo_id: str, *, has_model: bool) -> str:
    """The text of README.md, metadata first. has_model: whether the weights are uploaded too."""
    from huggingface_hub import ModelCard, ModelCardData

    base = recipe.base_model
    named = base.id in DEMO_MODELS or Path(base.id).is_absolute()
    card = ModelCardData(
        base_model=None if named else base.id,
        library_name="hf-sparsify",
        tags=["sparsify", "sparse-attention", *sorted({method.name for method in recipe.plan.values()})],
    )
    weights = "The weights are here too." if has_model else "No weights are here: they come from the base model."
    revision = f", revision {base.revision}" if base.revision else ""
    parts = [
        f"# {repo_id.rpartition('/')[2]}",
        "A recipe of sparsify (the Python package `hf-sparsify`): training-free sparse attention for "
        f"`{Path(base.id).name if named else base.id}`{revision}. {weights}",
        f"Patched: {describe_plan(recipe.plan)}. All other modules are dense.",
        *_calibrated(recipe),
        "## How to load",
        f"""```python
import hf_sparsify

loaded = hf_sparsify.load("{repo_id}")  # model, tokenizer and recipe; loaded.model is patched
```""",
        f"Or `sparsify eval {repo_id}` and the other commands.",
        "## Measured",
        _verdicts(recipe, directory),
        "## Versions",
        "Made with " + ", ".join(f"{name} {version}" for name, version in sorted(recipe.versions.items())) + ".",
        MARK,
    ]
    return str(ModelCard(f"---\n{card.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"))


def _calibrated(recipe: Recipe) -> list[str]:
    record = recipe.calibration
    if record is None:
        return []
    data = Path(record.dataset).name if Path(record.dataset).is_absolute() else record.dataset
    split = f" ({record.split})" if record.split else ""
    return [f"Thresholds were fitted on {record.samples} items of {data}{split}, at {record.budget}."]


def _verdicts(recipe: Recipe, directory: Path) -> str:
    """A table of the newest verdict on each data set."""
    rows = [_row(found) for found in _results(recipe, directory)]
    if not rows:
        return "This recipe was not evaluated."
    head = ["data set", "items", "metric", "dense", "patched", "difference, 95 % interval", "allowed", "verdict"]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _results(recipe: Recipe, directory: Path) -> list[dict[str, Any]]:
    """The results of this very recipe, the newest on each data set; what cannot be read is left out."""
    record = recipe.to_dict()["calibration"]
    calibration = record and {name: value for name, value in record.items() if name != "items"}
    plan = {name: method_to_dict(method) for name, method in recipe.plan.items()}
    newest: dict[tuple[str, str], dict[str, Any]] = {}
    paths = directory.glob(f"eval/*/{RESULTS}")
    for path in sorted(paths, key=lambda path: path.stat().st_mtime):
        try:
            found = ended_run(path.parent) or {}
            if found["plan"] == plan and found["calibration"] == calibration:
                _row(found)
                newest[found["dataset"]["name"], found["dataset"]["split"]] = found
        except (OSError, KeyError, TypeError, ValueError, RecursionError):
            continue
    return list(newest.values())


def _row(results: dict[str, Any]) -> list[str]:
    data, verdict, primary = results["dataset"], results["verdict"], results["primary"]
    name = Path(data["name"]).name if Path(data["name"]).is_absolute() else data["name"]
    found = verdict["difference"]
    cells = [
        f"{name} ({data['split']})" if data["split"] else name,
        str(data["items"]),
        results["metrics"][primary],
        *(f"{results['scores'][arm][primary]:.1f}" for arm in ("dense", "patched")),
        f"{found['value']:+.1f}, {found['low']:+.1f} to {found['high']:+.1f}",
        str(verdict["margin"]),
        str(verdict["decision"]),
    ]
    return [UNPRINTABLE.sub(" ", cell).replace("|", "\\|") for cell in cells]
