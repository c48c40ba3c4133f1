"""Zero-shot question answering with top-k feed-forward layers, beside the figures of the paper: prints its table.

python examples/unifiedqa.py demo-t5 --limit 60                            # offline
python examples/unifiedqa.py allenai/unifiedqa-t5-base --data unifiedqa    # as in the paper, from UnifiedQA's files
python examples/unifiedqa.py allenai/unifiedqa-t5-base                     # from the Hub: all but MCTest

Every k is a recipe in OUTPUT, and the dense model answers once for all of them. The same command goes on where it was
stopped. See docs/experiments/unifiedqa.md; Gupta et al. 2021, arXiv 2106.06899.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_sparsify import LoadOptions, UsageError
from hf_sparsify.commands.evaluate import EvalOptions, evaluate_targets
from hf_sparsify.commands.patch import make_wanted, plan_recipe, save
from hf_sparsify.commands.target import Target, full_name, load_named
from hf_sparsify.evaluation.demo import DEMO_MODELS
from hf_sparsify.evaluation.encoding import encode
from hf_sparsify.evaluation.items import ItemSet
from hf_sparsify.evaluation.sources import load_items
from hf_sparsify.evaluation.verdict.gate import Gate, Verdict
from hf_sparsify.evaluation.verdict.sequence import fixed_sequences
from hf_sparsify.patcher.binding.loading import LoadedModel
from hf_sparsify.patcher.recipe import is_recipe, load_recipe
from hf_sparsify.terminal import exit_codes, resumable
from tqdm import tqdm

PAPER = Path(__file__).with_name("unifiedqa_paper.json")
# What the paper's script runs with: inputs of 512 tokens, and generate's own limit of 20 with the one it starts from.
INPUT_TOKENS, ANSWER_TOKENS = 512, 19
# The paper's names for what `sparsify datasets` lists; the rest is in UnifiedQA's files alone.
HUB = {
    "squad1_1": "squad",
    "squad2": "squad_v2",
    "race_string": "race",
    "arc_hard": "arc_challenge",
    "commonsenseqa": "commonsense_qa",
    **{name: name for name in ("arc_easy", "boolq", "openbookqa", "narrativeqa")},
}
FOLDERS = {"mctest": "mctest_corrected_the_separator"}  # UnifiedQA's names that differ from the paper's

Figures = dict[str, dict[str, float]]  # k, or d_ff for dense -> data set -> percent


def paper_of(model: str) -> dict[str, Any]:
    """What the paper has on a model, by the last part of its name: {"d_ff", "datasets", "exact_match", "f1"}, or {}."""
    models: dict[str, Any] = json.loads(PAPER.read_text(encoding="utf-8"))["models"]
    return models.get(Path(model).name.lower(), {})


def paper_figures(paper: Mapping[str, Any], metric: str) -> Figures:
    """The paper's figures of one metric."""
    return {k: dict(zip(paper["datasets"], row, strict=True)) for k, row in paper.get(metric, {}).items()}


def questions(name: str, data: Path | None) -> ItemSet:
    """A data set in UnifiedQA's encoding: its own file below `data`, or made of what --dataset takes."""
    if data is None:
        return encode(load_items(HUB.get(name, name)))
    return replace(load_items(f"unifiedqa={file_of(name, data)}"), name=name)


def file_of(name: str, data: Path) -> Path:
    """The development set, or else the test set."""
    folders = [data / name, data / FOLDERS.get(name, name)]
    files = [folder / f"{split}.tsv" for split in ("dev", "test") for folder in folders]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise UsageError(f"--data {data} has neither {name}/dev.tsv nor {name}/test.tsv")
    return found


def default_datasets(model: str, data: Path | None) -> list[str]:
    """The paper's for a model, or those that it has for all, so far as they can be had."""
    if model in DEMO_MODELS and data is None:
        return ["demo"]
    wanted = paper_of(model).get("datasets") or paper_of("unifiedqa-t5-base")["datasets"]
    missing = [name for name in wanted if data is None and name not in HUB]
    if missing:
        print(f"only with --data: {', '.join(missing)}", file=sys.stderr)
    return [name for name in wanted if name not in missing]


def recipes(loaded: LoadedModel, ks: Sequence[int], output: Path) -> list[Target]:
    """A recipe in `output` for every k, in all feed-forward layers, or the one that is there."""
    targets = []
    for k in ks:
        planned, place = plan_recipe(loaded, make_wanted("none", ffn="top-k", ffn_k=k)), output / f"k-{k}"
        if not is_recipe(place):
            save(planned, place)
        found = load_recipe(place)
        if (found.base_model.id, found.plan) != (loaded.base.id, planned.recipe.plan):
            raise UsageError(f"{place} holds another recipe: give another directory with --output")
        targets.append(Target(loaded, found, place))
    return targets


def in_sequence(verdicts: list[Verdict]) -> list[Verdict]:
    """As in `sparsify sweep`: from the largest k on, each is tested where all before it pass."""
    return fixed_sequences([verdicts])[0]


def score_table(
    metric: str, short: str, found: Mapping[str, list[dict[str, Any]]], ks: Sequence[int], paper: Any
) -> str:
    """Every data set's score by k, the paper's in brackets, and the mean and the worst change from dense."""
    ours: Figures = {str(k): {} for k in ("dense", *ks)}
    for name, results in found.items():
        ours["dense"][name] = results[0]["scores"]["dense"][metric]
        for k, result in zip(ks, results, strict=True):
            ours[str(k)][name] = result["scores"]["patched"][metric]
    theirs = paper_figures(paper, metric)
    if theirs:
        theirs["dense"] = theirs[str(paper["d_ff"])]
    lines = [_row(short, "dense", *(f"k = {k}" for k in ks)), _row(*["---"] * (len(ks) + 2))]
    for name in found:
        cells = [(ours[k][name], theirs.get(k, {}).get(name)) for k in ours]
        lines.append(_row(name, *(_beside(*cell, ".1f") for cell in cells)))
    for label, pick in (("mean change", statistics.mean), ("worst change", min)):
        changes = [(_changes(ours, k, found), _changes(theirs, k, found)) for k in ours]
        lines.append(
            _row(label, *(_beside(pick(own), pick(other) if other else None, "+.2f") for own, other in changes))
        )
    return "\n".join(lines)


def verdict_table(found: Mapping[str, list[dict[str, Any]]], ks: Sequence[int]) -> str:
    """By k the change of EM with its 95 % interval, and the verdict."""
    lines = [_row("EM less dense", "questions", *(f"k = {k}" for k in ks)), _row(*["---"] * (len(ks) + 2))]
    for name, results in found.items():
        cells = []
        for result in results:
            at = result["intervals"][result["primary"]]
            change = f"{at['difference']:+.1f} ({at['low']:+.1f} to {at['high']:+.1f})"
            cells.append(f"{change} {result['verdict']['decision']}")
        lines.append(_row(name, str(results[0]["dataset"]["items"]), *cells))
    return "\n".join(lines)


def _changes(figures: Figures, k: str, names: Any) -> list[float]:
    """Of the data sets that were run and have a figure."""
    return [figures[k][name] - figures["dense"][name] for name in names if name in figures.get(k, {})]


def _beside(ours: float, theirs: float | None, form: str) -> str:
    return f"{ours:{form}}" + ("" if theirs is None else f" [{theirs:{form}}]")


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a T5 model")
    parser.add_argument("--data", type=Path, help="UnifiedQA's files: DATA/NAME/dev.tsv, else test.tsv")
    parser.add_argument("--datasets", nargs="+", metavar="NAME", help="the paper's names, or what --dataset takes")
    parser.add_argument("--k", nargs="+", type=int, help="of d_ff (default: the paper's, else d_ff / 4 to d_ff / 256)")
    parser.add_argument("--limit", type=int, help="random subset of so many questions of each data set")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-drop", type=float, default=1.0, help="points of EM that may be lost")
    parser.add_argument("--output", type=Path, default=Path("unifiedqa-results"))
    return parser.parse_args()


def kept(asked: list[int] | None, paper: Mapping[str, Any], loaded: LoadedModel) -> list[int]:
    """Every k to run, the largest first. UsageError if the model has no d_ff or no k is below it."""
    d_ff = getattr(loaded.model.config, "d_ff", None)
    if d_ff is None or loaded.base.task != "seq2seq-lm":
        raise UsageError(f"{loaded.base.id} is no T5 model")
    ks = asked or [int(k) for k in paper.get("exact_match", ())] or [max(1, d_ff // 2**power) for power in range(2, 9)]
    if min(ks) >= d_ff:
        raise UsageError(f"--k: {min(ks)} is no fewer than all, d_ff is {d_ff}")
    return sorted({k for k in ks if k < d_ff}, reverse=True)


def ask(targets: list[Target], items: ItemSet, options: EvalOptions) -> list[dict[str, Any]]:
    """The results of every recipe on one data set."""
    with tqdm(total=len(targets) * min(options.limit or len(items), len(items)), desc=items.name) as bar:
        command = shlex.join(["python", *sys.argv])
        outcomes = evaluate_targets(targets, items, options, command=command, advance=bar.update, correct=in_sequence)
    return [outcome.results for outcome in outcomes]


@exit_codes
def main() -> None:
    args = arguments()
    options = EvalOptions(
        args.limit,
        batch_size=args.batch_size,
        max_new_tokens=ANSWER_TOKENS,
        max_input_tokens=INPUT_TOKENS,
        gate=Gate(args.max_drop),
    )
    names = args.datasets or default_datasets(args.model, args.data)
    sets = {name: questions(name, args.data) for name in names}  # what is missing is said before anything runs
    loaded, paper = load_named(full_name(args.model), LoadOptions()), paper_of(args.model)
    ks = kept(args.k, paper, loaded)
    targets = recipes(loaded, ks, args.output)
    with resumable():
        found = {name: ask(targets, items, options) for name, items in sets.items()}
    figures = " [the paper's figures]" if paper else ""
    print(f"{args.model}, d_ff = {loaded.model.config.d_ff}: top-k in all feed-forward layers{figures}\n")
    print(score_table("exact_match", "EM", found, ks, paper), "", score_table("f1", "F1", found, ks, paper), sep="\n")
    print("", verdict_table(found, ks), sep="\n")


if __name__ == "__main__":
    main()
