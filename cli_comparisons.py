"""The commands that run the dense and the patched model side by side: eval, bench, generate. See cli.py."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from . import bench_options as b
from . import options as o
from .opening import Opening, items_of
from .option_groups import GATHERED, takes_asking, takes_benching, takes_opening
from .terminal import WIDE, command_line, exit_codes, results_console, resumable


@exit_codes
@takes_opening
@takes_asking
def evaluate(
    targets: o.Targets = None,
    dataset: o.Dataset = None,
    split: o.Split = None,
    task: o.Task = None,
    asking: Any = GATHERED,
    harness: o.Harness = None,
    require_conclusion: o.RequireConclusion = False,
    by_module: o.ByModule = False,
    as_json: o.Json = False,
    output: o.ResultsOutput = None,
    opening: Opening = GATHERED,
) -> None:
    """Ask the unpatched and the patched model the same, and judge the difference: PASS, FAIL or INCONCLUSIVE.

    A model that generates writes answers or chooses among them, one with a head for question answering or
    classification uses that, and an encoder finds the question's passage; `sparsify datasets` lists what can be asked.

    Uses the validation split of squad (of demo for demo models) unless told otherwise. Writes results.json and
    predictions.jsonl to RECIPE/eval/RUN; the same command goes on where it was stopped. Exit code 3 is FAIL.
    """
    from .commands.evaluate import as_plain, check_output, evaluate_targets, exit_code
    from .commands.report import evaluation_report
    from .evaluation.datasets import check_task, require_task
    from .processes import Processes

    check_task(task)
    check_output(output, targets or [])
    opening.start(targets[0] if targets else None)
    if harness is not None:
        from .commands.harness import evaluate_harness, open_harness

        given = {"dataset": dataset, "split": split, "task": task}
        tasks = open_harness(harness, asking, **given, trusted=opening.loading.trust_remote_code)
        opened = opening.targets(targets or [])
        with opening.progress(tasks.total(len(opened)), "evaluating") as advance:
            outcomes = evaluate_harness(opened, tasks, asking, output=output, command=command_line(), advance=advance)
    else:
        items = items_of(dataset, split, "validation") if dataset is not None else None
        if items is not None:
            require_task(task, items.name, items.dataset)
        opened = opening.targets(targets or [])
        if items is None:
            items = items_of(opened[0].default_dataset, split, "validation")
            require_task(task, items.name, items.dataset)
        total, processes = len(opened) * min(asking.limit or len(items), len(items)), Processes.join()
        with opening.progress(total, "evaluating", processes=processes.count) as advance, resumable():
            outcomes = evaluate_targets(
                opened, items, asking, output=output, processes=processes, command=command_line(), advance=advance
            )
        if not processes.is_main:
            return
    if as_json:
        print(json.dumps(as_plain(outcomes), indent=2))
    else:
        results_console(at_least=WIDE if by_module else 0).print(evaluation_report(outcomes, by_module))
    for outcome in outcomes:
        done = "was there already, judged anew:" if outcome.was_there else "wrote"
        opening.say(f"{done} {outcome.directory}")
    raise typer.Exit(exit_code(outcomes, require_conclusion=require_conclusion))


@exit_codes
@takes_opening
@takes_benching
def bench(
    target: o.TargetArgument = None,
    benching: Any = GATHERED,
    dataset: b.BenchDataset = None,
    split: o.Split = None,
    as_json: o.Json = False,
    output: b.BenchOutput = None,
    opening: Opening = GATHERED,
) -> None:
    """Time the dense and the patched model on the same tokens, and say from which length on the patch pays.

    Prompt and generated tokens are timed apart, in one process, in turn; peak memory is measured in a process for each
    contender. Writes bench.json and a plot to RECIPE/bench/TIME.
    """
    from .benchmark.arms import Arms
    from .benchmark.report import bench_tables
    from .commands import bench as command

    command.check_output(output)
    opening.start(target)
    items = items_of(dataset, split, "validation") if dataset is not None else None
    opened = opening.target(target)
    lengths = command.check_target(opened, benching)
    tokens = command.input_tokens(opened, items, benching, lengths[-1])
    arms = Arms(opened.loaded.model, command.recipe_to_measure(opened, benching), eager=benching.eager)
    job = command.make_job(target, opening.model, opening.loading, tokens, benching)
    with opening.progress(command.passes(benching, lengths, arms), "timing") as advance:
        measured = command.bench(opened, arms, benching, lengths, tokens, job=job, advance=advance)
    text = dataset or "the Python documentation"
    done = command.finish(opened, benching, measured, text=text, command=command_line(), output=output)
    if as_json:
        print(json.dumps(done.results, indent=2))
    else:
        results_console(at_least=WIDE).print(bench_tables(done.results))
    for line in command.closing_lines(done):
        opening.say(line)


@exit_codes
@takes_opening
def generate(
    target: Annotated[str, typer.Argument(metavar="RECIPE|MODEL", help="A recipe or a model.")],
    prompt: Annotated[str, typer.Argument(help="What to answer; a chat model gets it as a user's turn.")],
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 64,
    as_json: o.Json = False,
    opening: Opening = GATHERED,
) -> None:
    """Show the dense and the patched answer to one prompt side by side (greedy)."""
    from .commands.generate import generate_both
    from .commands.report import answers_report

    opening.start(target)
    opened = opening.target(target)
    answers = generate_both(opened, prompt, max_new_tokens)
    if as_json:
        print(json.dumps(answers, indent=2))
    else:
        results_console().print(answers_report(answers))
