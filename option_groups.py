"""Groups of options that a command takes as one argument: which they are, their defaults, and what is made of them."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import typer

from . import bench_options as b
from . import options as o
from . import search_options as so
from .opening import Opening

# The options of how to open a model, and what a person is told: name -> annotation and default, as in Opening.of.
_OPENING: dict[str, tuple[Any, Any]] = {
    "model": (o.MovedModel, None),
    "seed": (o.HiddenSeed, 0),
    "dtype": (o.Dtype, "auto"),
    "device": (o.Device, "auto"),
    "device_map": (o.DeviceMap, None),
    "revision": (o.Revision, None),
    "trust_remote_code": (o.TrustRemoteCode, False),
    "gguf_file": (o.GgufFile, None),
    "quiet": (o.Quiet, False),
    "verbose": (o.Verbose, False),
}
# Those of them that go with a configuration alone.
_FINDING = ("model", "dtype", "revision", "trust_remote_code", "gguf_file", "quiet", "verbose")
# The options that describe what `patch` patches and how: as in commands.patch.make_wanted.
_PATCHING: dict[str, tuple[Any, Any]] = {
    "attention": (o.Attention, "top-k"),
    "k": (o.K, None),
    "keep": (o.Keep, None),
    "min_keep": (o.MinKeep, None),
    "compensation": (o.Compensation, None),
    "v_mean": (o.VMean, None),
    "placement": (o.Placement, None),
    "denominator": (o.Denominator, None),
    "clusters": (o.Clusters, None),
    "clustering": (o.Clustering, None),
    "min_length": (o.MinLength, None),
    "ffn": (o.Ffn, "none"),
    "ffn_k": (o.FfnK, None),
    "ffn_keep": (o.FfnKeep, None),
    "override": (o.Set, None),
    "layers": (o.Layers, None),
    "skip_layers": (o.SkipLayers, None),
    "kind": (o.Kind, None),
    "stack": (o.Stack, None),
    "protect_first": (o.ProtectFirst, 0),
    "protect_recent": (o.ProtectRecent, 0),
}
# The options of what `calibrate` calibrates on, and how: as in commands.calibrate.make_options.
_CALIBRATING: dict[str, tuple[Any, Any]] = {
    "samples": (o.Samples, 128),
    "distractors": (o.Distractors, 0),
    "seed": (o.Seed, 0),
    "k": (o.OtherK, None),
    "keep": (o.OtherKeep, None),
    "compensation": (o.OtherCompensation, None),
    "placement": (o.OtherPlacement, None),
    "estimator": (o.Estimator, "count-matched"),
    "alpha": (o.Alpha, 0.0),
    "activations": (o.Activations, "sparse"),
    "denominator": (o.OtherDenominator, None),
}
# The options that describe what `eval` asks, how, and what decides: as in commands.evaluate.make_options.
_ASKING: dict[str, tuple[Any, Any]] = {
    "limit": (o.Limit, None),
    "seed": (o.Seed, 0),
    "batch_size": (o.BatchSize, 8),
    "max_new_tokens": (o.MaxNewTokens, None),
    "max_input_tokens": (o.MaxInputTokens, None),
    "prompt_template": (o.PromptTemplate, None),
    "shots": (o.Shots, 0),
    "shots_from": (o.ShotsFrom, None),
    "distractors": (o.Distractors, 0),
    "as_top_k": (o.AsTopK, False),
    "max_drop": (o.MaxDrop, 1.0),
    "min_recovery": (o.MinRecovery, None),
    "cache": (o.Cache, True),
}
# The options of what `bench` measures: as in commands.bench.make_options.
_BENCHING: dict[str, tuple[Any, Any]] = {
    "lengths": (b.Lengths, None),
    "new_tokens": (b.NewTokens, 64),
    "batch_size": (b.Sequences, 1),
    "repeats": (b.Repeats, 5),
    "eager": (b.Eager, True),
    "memory": (b.Memory, True),
    "write": (b.Write, False),
}
# The options of which cells `sweep` tries: as in commands.sweep.make_options. Those of `patch` hold for all cells.
_SWEEPING: dict[str, tuple[Any, Any]] = {
    "methods": (so.Methods, "top-k,top-theta"),
    "keep": (so.Keeps, None),
    "k": (so.Ks, None),
    "clusters": (so.ClusterCounts, None),
    "ffn_keep": (so.FfnKeeps, None),
    "ffn_k": (so.FfnKs, None),
    **{
        name: _PATCHING[name]
        for name in ("layers", "skip_layers", "kind", "stack", "compensation", "v_mean", "placement", "denominator")
    },
    **{name: _PATCHING[name] for name in ("clustering", "min_keep", "min_length", "protect_first", "protect_recent")},
    "samples": (so.CalibrationSamples, 128),
    "calibrate_on": (so.CalibrateOn, None),
    "bench": (so.TimeCells, False),
    "lengths": (so.CellLengths, None),
}
# The options of what `tune` tunes, and how it is judged: as in commands.tune_options.make_options.
_TUNING: dict[str, tuple[Any, Any]] = {
    "goal": (so.Goal, "kept"),
    "keep": (so.Budgets, None),
    "samples": (so.TuneSamples, 16),
    "calibrate_on": (so.TuneOn, None),
    "attention": (so.TunedAttention, "top-k"),
    **{name: _PATCHING[name] for name in ("compensation", "ffn", "layers", "skip_layers", "kind", "stack")},
    "limit": (so.ItemLimit, None),
    **{name: _ASKING[name] for name in ("seed", "batch_size", "max_new_tokens", "prompt_template")},
    **{name: _ASKING[name] for name in ("max_drop", "min_recovery", "cache")},
}
GATHERED: Any = None  # the default of an argument that a decorator below fills in


def takes_opening(command: Callable[..., None]) -> Callable[..., None]:
    """Puts the options of how to open a model in place of a command's argument `opening`, which gets an Opening.

    An option that the command has itself stays its own.
    """
    own = inspect.signature(command).parameters
    options = {name: option for name, option in _OPENING.items() if name not in own}
    return _gathered(command, "opening", options, Opening.of)


def takes_finding(command: Callable[..., None]) -> Callable[..., None]:
    """The same with the options that say where a configuration is."""
    return _gathered(command, "opening", {name: _OPENING[name] for name in _FINDING}, Opening.of)


def takes_patching(command: Callable[..., None]) -> Callable[..., None]:
    """Puts the options of what to patch in place of a command's argument `patching`, which gets them as a dict."""
    return _gathered(command, "patching", _PATCHING, dict)


def typed(context: typer.Context, panel: str) -> list[str]:
    """The options of a panel of the help that were typed, such as ["--k"]."""
    return [
        parameter.opts[0]
        for parameter in context.command.params
        if getattr(parameter, "rich_help_panel", None) == panel
        and getattr(context.get_parameter_source(parameter.name or ""), "name", "") == "COMMANDLINE"
    ]


def takes_calibrating(command: Callable[..., None]) -> Callable[..., None]:
    """Puts the options of a calibration in place of a command's argument `asked`, which gets CalibrateOptions."""
    return _gathered(command, "asked", _CALIBRATING, _options_of("calibrate"))


def takes_asking(command: Callable[..., None]) -> Callable[..., None]:
    """Puts the options of an evaluation in place of a command's argument `asking`, which gets EvalOptions."""
    return _gathered(command, "asking", _ASKING, _options_of("evaluate"))


def takes_sweeping(command: Callable[..., None]) -> Callable[..., None]:
    """Puts the options of a grid in place of a command's argument `grid`, which gets SweepOptions, and those of an
    evaluation without --as-top-k in place of `asking`."""
    asking = {name: option for name, option in _ASKING.items() if name != "as_top_k"}
    asking["limit"] = (so.ItemLimit, None)
    return _gathered(
        _gathered(command, "asking", asking, _options_of("evaluate")), "grid", _SWEEPING, _options_of("sweep")
    )


def takes_tuning(command: Callable[..., None]) -> Callable[..., None]:
    """Puts the options of a tuning in place of a command's argument `tuning`, which gets TuneOptions."""
    return _gathered(command, "tuning", _TUNING, _options_of("tune_options"))


def takes_benching(command: Callable[..., None]) -> Callable[..., None]:
    """Puts the options of a benchmark in place of a command's argument `benching`, which gets BenchOptions."""
    return _gathered(command, "benching", _BENCHING, _options_of("bench"))


def _options_of(command: str) -> Callable[..., Any]:
    """make_options of a module of commands/, which is imported when it is called."""

    def make(**given: Any) -> Any:
        return importlib.import_module(f".commands.{command}", __package__).make_options(**given)

    return make


def _gathered(
    command: Callable[..., None], argument: str, options: dict[str, tuple[Any, Any]], make: Callable[..., Any]
) -> Callable[..., None]:
    """The command with several options in place of one argument, which gets what `make` makes of them."""

    @functools.wraps(command)
    def run(**given: Any) -> None:
        made = make(**{name: given.pop(name) for name in options})
        command(**{argument: made}, **given)

    signature = inspect.signature(command, eval_str=True)
    parameters = []
    for name, parameter in signature.parameters.items():
        if name != argument:
            parameters.append(parameter)
            continue
        for option, (annotation, default) in options.items():
            parameters.append(parameter.replace(name=option, annotation=annotation, default=default))
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
