"""`sparsify push`: a recipe with its model card on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from ..calibration.histogram_file import HISTOGRAMS_FILE
from ..errors import SparsifyError, UsageError
from ..files import locked, settle, sha256, write_file
from ..hub import refusal
from ..patcher.binding.base_model import holds_model
from ..patcher.recipe import THRESHOLDS_FILE, Recipe, load_recipe
from ..patcher.tensor_file import reason
from ..patcher.thresholds import thresholds_bytes
from ..strict_json import shown
from .card import MARK, model_card
from .recipe_source import RECIPE_FILES

CARD_FILE = "README.md"
# With the model, if it is there: what save_pretrained writes, and nothing else that may lie in the folder.
MODEL_FILES = (
    *("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "spiece.model"),
    *("chat_template.jinja", "1_Pooling/config.json"),
)


def push_to_hub(
    directory: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str | None = None,
) -> str:
    """Uploads a recipe with its model card, and the model if the recipe holds it, and returns the address.

    directory: of the recipe; the card is made there as README.md, unless a README.md that a person wrote is there. No
    questions, predictions or results are uploaded; the card has a table of verdicts. repo_id: USER/NAME, made if it is
    not there. private, token: as in huggingface_hub. Raises what load_recipe raises, UsageError for a recipe whose
    model nobody else has or a name that none can have, SparsifyError if the Hub refuses or cannot be reached.
    """
    place = Path(directory)
    recipe = load_recipe(place)
    has_model = holds_model(place)
    _check(recipe, place, has_model=has_model)
    import huggingface_hub

    if "/" not in repo_id:
        raise UsageError(f"{shown(repo_id)} is no name of a repository: write USER/NAME")
    try:
        huggingface_hub.utils.validate_repo_id(repo_id)
    except ValueError as error:
        raise UsageError(f"{shown(repo_id)} is no name of a repository: {reason(error)}") from None
    wanted = [*RECIPE_FILES, CARD_FILE, *(MODEL_FILES if has_model else ())]
    try:
        api = huggingface_hub.HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        _write_card(place, recipe, repo_id, has_model=has_model)  # a Hub that cannot be reached changes nothing here
        settle_recipe(place, recipe)
        with locked(place, shared=True):  # nobody writes a new recipe meanwhile
            done = api.upload_folder(
                repo_id=repo_id,
                folder_path=place,
                allow_patterns=wanted,
                commit_message=commit_message or "Upload a sparsify recipe",
            )
    except SparsifyError:
        raise
    except Exception as error:  # of the HTTP library and of threads that upload, too
        why = refusal(error) or reason(error)
        raise SparsifyError(f"{place} cannot be pushed to {repo_id}: {why}") from error
    return str(done)


def settle_recipe(place: Path, recipe: Recipe) -> None:
    """Puts files into their places that a killed writer left waiting."""
    if recipe.thresholds:
        settle(place, THRESHOLDS_FILE, sha256(thresholds_bytes(recipe.thresholds)))
    if recipe.calibration is not None:
        settle(place, HISTOGRAMS_FILE, recipe.calibration.histograms_sha256)


def _check(recipe: Recipe, place: Path, *, has_model: bool) -> None:
    if Path(recipe.base_model.id).is_absolute() and not has_model:
        raise UsageError(
            f"the recipe in {place} is for {recipe.base_model.id}, which is on this machine alone: patch the model by "
            "its name on the Hub, or use `sparsify patch --save-model`"
        )


def _write_card(place: Path, recipe: Recipe, repo_id: str, *, has_model: bool) -> None:
    path = place / CARD_FILE
    if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        return
    write_file(path, model_card(recipe, place, repo_id, has_model=has_model).encode())
