"""ListOps of Long Range Arena: a BERT trained from scratch with dense, top-k and clustered attention; prints a table.

    python examples/listops.py --output listops.json                         # small: some ten minutes of a CPU core
    python examples/listops.py --size published --device cuda --output published.json
    python examples/listops.py --size published --measure --batch-size 1     # memory and time of a step, no training
    python examples/listops.py --size published --methods ''                 # what rules without structure find

All methods see the same examples, the same first weights and, by seed, the same order of the examples. What is
finished is kept in the output, and the same command goes on after Ctrl-C, as long as the code is the same. Memory and
time are those of a training step at the greatest length, above weights and optimizer, in a process of its own; seconds
are of all threads on a CPU, where others may be busy too, and by the clock elsewhere. Rules that see no structure
stand beside.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import hf_sparsify
import torch
from hf_sparsify.files import write_file
from listops_data import generate
from listops_rules import RULES
from listops_training import METHODS, SIZES, Size, in_own_process, train

DATA_SEED = 0
HEADER = "| attention | accuracy, % | seeds | steps | MiB a step | seconds a step |\n|---|---|---|---|---|---|"


def main() -> None:
    parser, arguments = parse()
    size = sized(arguments)
    settings = {**asdict(size), "device": str(arguments.device), "data_seed": DATA_SEED, "code": code()}
    try:
        results = Results(settings, arguments.output)
    except (ValueError, OSError) as error:
        parser.error(f"--output {arguments.output}: {error}")
    status = 0
    try:
        fill(results, size, arguments)
    except KeyboardInterrupt:
        status = 130
        print("interrupted; the same command with --output goes on", file=sys.stderr)
    rules = [] if arguments.measure else map(results.rule, RULES)
    print("\n".join([HEADER, *rules, *map(results.row, arguments.methods)]))
    sys.exit(status)


def parse() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small", help="task, encoder and training")
    parser.add_argument("--length", type=bounds, metavar="LEAST-MOST", help="tokens of an expression")
    parser.add_argument("--batch-size", type=count)
    parser.add_argument("--steps", type=count, help="updates of a run")
    parser.add_argument("--seeds", type=count, default=3, help="runs of each method")
    parser.add_argument("--methods", type=methods, default=list(METHODS), metavar="NAME,...", help=", ".join(METHODS))
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--measure", action="store_true", help="memory and time of a training step alone")
    parser.add_argument("--output", type=Path, help="JSON of what is finished, and where to go on")
    return parser, parser.parse_args()


def bounds(text: str) -> tuple[int, int]:
    """'60-120'."""
    least, most = map(int, text.split("-"))
    if not 0 < least <= most:
        raise ValueError
    return least, most


def count(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError
    return number


def methods(text: str) -> list[str]:
    """'' is none of them: the rules alone."""
    names = text.split(",") if text else []
    if unknown := [name for name in names if name not in METHODS]:
        raise argparse.ArgumentTypeError(f"no method {unknown[0]}: choose from {', '.join(METHODS)}")
    return names


def sized(arguments: argparse.Namespace) -> Size:
    """The size that was asked for, with what was given in place of its own."""
    size = SIZES[arguments.size]
    least, most = arguments.length or (size.grammar.min_length, size.grammar.max_length)
    return replace(
        size,
        grammar=replace(size.grammar, min_length=least, max_length=most),
        batch_size=arguments.batch_size or size.batch_size,
        steps=arguments.steps or size.steps,
    )


def code() -> dict[str, str]:
    """What else a result depends on: versions, and a hash of the package's patcher."""
    digest = hashlib.sha256()
    for file in sorted(Path(hf_sparsify.__file__).parent.joinpath("patcher").rglob("*.py")):
        digest.update(file.read_bytes())
    versions = {name: version(name) for name in ("hf-sparsify", "torch", "transformers")}
    return {**versions, "patcher": digest.hexdigest()}


class Results:
    """What is finished, and its file. ValueError for one of other settings, by other code or in no folder; OSError as
    open()."""

    def __init__(self, settings: dict[str, Any], path: Path | None) -> None:
        self.path = path
        if path is not None and not path.parent.is_dir():
            raise ValueError("its folder is not there; make it first")
        self.document: dict[str, Any] = {
            "settings": settings,
            "rules": {},
            "step": {},
            "runs": {},
        }
        if path is not None and path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(found, dict) or found.get("settings") != settings:
                raise ValueError("it holds results of other settings or other code; name another file")
            self.document = found

    def once(self, kind: str, name: str, find: Callable[[], Any]) -> None:
        """Finds what is not there yet, and writes the file."""
        if name in self.document[kind]:
            return
        self.document[kind][name] = find()
        if self.path is not None:
            write_file(self.path, (json.dumps(self.document, indent=2) + "\n").encode())

    def rule(self, name: str) -> str:
        share = self.document["rules"].get(name)
        return f"| {name} | {'-' if share is None else f'{100 * share:.1f}'} | | | | |"

    def row(self, method: str) -> str:
        """Mean and standard deviation over seeds; '-' for what was not found."""
        runs = self.document["runs"]
        found = [100 * accuracy for name, accuracy in runs.items() if name.startswith(f"{method}, seed")]
        accuracy = f"{statistics.mean(found):.1f}" if found else "-"
        spread = f" +- {statistics.stdev(found):.1f}" if len(found) > 1 else ""
        steps = self.document["settings"]["steps"] if found else "-"
        peak, seconds = self.document["step"].get(method, (None, None))
        memory = "-" if peak is None else f"{peak / 2**20:.0f}"
        speed = "-" if seconds is None else f"{seconds:.3f}"
        return f"| {method} | {accuracy}{spread} | {len(found)} | {steps} | {memory} | {speed} |"


def fill(results: Results, size: Size, arguments: argparse.Namespace) -> None:
    """Finds everything that was asked for and is not there."""
    device = arguments.device
    for method in arguments.methods:
        results.once("step", method, lambda method=method: in_own_process(size, method, device))
    if arguments.measure:
        return
    examples = generate(size.grammar, size.test + size.train, DATA_SEED)
    test, training = examples[: size.test], examples[size.test :]
    for name, rule in RULES.items():
        results.once("rules", name, lambda rule=rule: rule(training, test))
    for seed in range(arguments.seeds):
        for method in arguments.methods:

            def run(method: str = method, seed: int = seed) -> float:
                return train(size, method, seed, device, training, test, report)

            results.once("runs", f"{method}, seed {seed}", run)


def report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
