"""What ships inside the package so that every command runs offline: tiny trained models and their questions."""

from pathlib import Path

_HERE = Path(__file__).resolve().parent

DEMO_MODELS = {name: _HERE / name for name in ("demo-bert", "demo-llama", "demo-t5")}
DEMO_SPLITS = ("train", "validation")


def demo_model_path(name: str) -> Path:
    """The directory of an embedded model, for `from_pretrained`."""
    if name not in DEMO_MODELS:
        raise ValueError(f"no demo model {name!r}; there is {', '.join(sorted(DEMO_MODELS))}")
    return DEMO_MODELS[name]


def demo_data_path(split: str) -> Path:
    """The file of a split of the demo questions (nested SQuAD v1.1 JSON, each question with its `kind`)."""
    if split not in DEMO_SPLITS:
        raise ValueError(f"no demo split {split!r}; there are {', '.join(DEMO_SPLITS)}")
    return _HERE / "data" / f"{split}.json"
