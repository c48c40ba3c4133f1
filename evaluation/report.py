"""Results as tables for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from ..patcher.meter import K_LIMIT
from ..patcher.methods import METHODS
from ..patcher.methods.budget import Budget
from ..tables import facts, grid, percent, titled
from .results import NEAR_TIE
from .tasks.base import TOO_LONG
from .verdict.gate import FAIL, INCONCLUSIVE, NOT_TESTED, PASS

WAS_THERE = "note: nothing was run; these are the answers of an earlier run, judged anew (--no-cache runs it again)"
FLIPS_SHOWN, SHOWN_CHARACTERS = 3, 32
STYLES = {PASS: "green", FAIL: "red", INCONCLUSIVE: "yellow", NOT_TESTED: "dim"}
ERROR_RATES = {"wer": "WER, all words", "cer": "CER, all characters"}
HOLM = (
    "p: one-sided, of a loss beyond what is allowed, after Holm's correction for several verdicts; PASS needs 0.025 or "
    "less"
)
NO_BETTER_THAN_CHANCE = "note: the dense model itself is not clearly above chance here, so little can be lost"

# Above this share of fallback rows the figures say more about exact top-k than about the thresholds.
WORTH_A_NOTE = 0.1
NO_THRESHOLD_NOTE = (
    "note: {} of the rows longer than k had no threshold and used exact top-k; calibrate on more or longer samples"
)


def results_tables(results: dict[str, Any], *, by_module: bool = False, was_there: bool = False) -> RenderableType:
    """The tables of one evaluation; by_module adds what each module kept. was_there: it was only judged anew."""
    parts: list[RenderableType] = [_scores(results), "", verdict_line(results["verdict"]), ""]
    if results["by_kind"]:
        parts += [_kinds(results), ""]
    parts.append(facts(_facts(results)))
    if results["flips"] is not None and results["flips"]["answers"]:
        parts += ["", _flipped(results["flips"])]
    total = results["kept"]["total"]
    if total["rows_without_threshold"] > WORTH_A_NOTE * max(1, total["long_rows"]):
        parts += ["", NO_THRESHOLD_NOTE.format(percent(total["rows_without_threshold"] / total["long_rows"]))]
    if interception := results.get("interception"):
        parts += ["", f"note: {interception['note']}"]
    if was_there:
        parts += ["", WAS_THERE]
    if not results["verdict"]["dense_above_chance"]:
        parts += ["", NO_BETTER_THAN_CHANCE]
    if by_module:
        parts += ["", modules_table(results)]
    return Group(*parts)


def comparison(several: list[dict[str, Any]]) -> RenderableType:
    """The verdicts of several recipes, or on several sets of items, with Holm's correction, and the reason of each."""
    one_set = len({_asked(results) for results in several}) == 1
    rows = []
    for results in several:
        key, short = _primary(results)
        interval, verdict, kl = results["intervals"][key], results["verdict"], results["distance"].get("kl")
        rows.append(
            [
                called(results),
                verdict["decision"],
                results["method"],
                *([] if one_set else [_asked(results)]),
                short,
                *(f"{results['scores'][arm][key]:.1f}" for arm in ("dense", "patched")),
                f"{interval['difference']:+.1f}",
                _between(interval),
                f"{verdict['p_holm']:.2g}",
                percent(results["same_answer_share"]),
                f"{kl['value']:.4f}" if kl else "-",
            ]
        )
    header = ["recipe", "verdict", "method", *([] if one_set else ["items"]), "metric"]
    numbers = ["dense", "patched", "difference", "95 % interval", "p", "same answer", "KL"]
    table = grid([*header, *numbers], rows, text_columns=len(header))
    reasons = [Text.assemble(f"{called(results)}: ", verdict_line(results["verdict"])) for results in several]
    title = f"{len(several)} verdicts" + (f" on {_asked(several[0])}" if one_set else "")
    notes = [f"{called(results)}: {found['note']}" for results in several if (found := results.get("interception"))]
    return Group(titled(title, table), "", *reasons, *notes, "", HOLM)


def called(results: dict[str, Any]) -> str:
    """What a recipe is called in tables."""
    return str(results["recipe"] or results["base_model"]["id"])


def verdict_line(verdict: dict[str, Any]) -> Text:
    """The decision with its reason."""
    return Text.assemble((verdict["decision"], f"bold {STYLES[verdict['decision']]}"), f": {verdict['reason']}")


def _scores(results: dict[str, Any]) -> RenderableType:
    scores = results["scores"]
    rows = [
        [
            short,
            *(f"{scores[arm][name]:.1f}" for arm in ("dense", "patched")),
            f"{scores['difference'][name]:+.1f}",
            _between(results["intervals"][name]),
        ]
        for name, short in results["metrics"].items()
    ]
    for name, rate in results.get("error_rates", {}).items():
        figures = (f"{rate['dense']:.1f}", f"{rate['patched']:.1f}", f"{rate['difference']:+.1f}", _between(rate))
        rows.append([ERROR_RATES[name], *figures])
    title = f"{_asked(results)}; patched: {results['method']}"
    return titled(title, grid(["", "dense", "patched", "difference", "95 % interval"], rows))


def _asked(results: dict[str, Any]) -> str:
    dataset = results["dataset"]
    source = f"{dataset['name']} ({dataset['split']})" if dataset["split"] else dataset["name"]
    return f"{dataset['items']} item{'s' * (dataset['items'] != 1)} of {source}"


def _between(interval: dict[str, float]) -> str:
    return f"{interval['low']:+.1f} to {interval['high']:+.1f}"


def _primary(results: dict[str, Any]) -> tuple[str, str]:
    """The metric that the verdict goes by: its key and its short name."""
    return results["primary"], results["metrics"][results["primary"]]


def _kinds(results: dict[str, Any]) -> RenderableType:
    key, short = _primary(results)
    rows = [
        [
            kind,
            str(row["items"]),
            *(f"{row[arm][key]:.1f}" for arm in ("dense", "patched")),
            f"{row['difference'][key]:+.1f}",
        ]
        for kind, row in results["by_kind"].items()
    ]
    return titled(f"{short} by kind", grid(["kind", "items", "dense", "patched", "difference"], rows))


def _flipped(flips: dict[str, Any]) -> RenderableType:
    """The first items that flipped, both ways, with their answers."""
    rows = []
    for name in ("right_to_wrong", "wrong_to_right"):
        for id_ in flips[name][:FLIPS_SHOWN]:
            said = flips["answers"][id_]
            gold = " / ".join(said["gold"])
            shown = (gold, said["dense"], said["patched"])
            rows.append([name.replace("_", " "), id_, *(_short(str(text)) for text in shown)])
    hidden = sum(max(0, len(flips[name]) - FLIPS_SHOWN) for name in ("right_to_wrong", "wrong_to_right"))
    title = "Answers that flipped" + (f" ({hidden} more in results.json)" if hidden else "")
    return titled(title, grid(["", "item", "gold", "dense", "patched"], rows, text_columns=5))


def _short(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 3]}..."


def _facts(results: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "the verdict goes by", f"{_primary(results)[1]}, {results['verdict']['margin']}"
    dataset = results["dataset"]
    if dataset["groups"] < dataset["items"]:
        alike = "recordings of one speaker" if results.get("task") == "asr" else "items on one passage"
        yield "intervals", f"from resampling {dataset['groups']} groups: {alike} are not independent"
    if (flips := results["flips"]) is not None:
        lost, won = len(flips["right_to_wrong"]), len(flips["wrong_to_right"])
        test = f"exact McNemar p = {flips['p']:.2g}" + (
            ", descriptive: items are grouped" if flips["descriptive"] else ""
        )
        yield f"{results['metrics'][flips['metric']]} flipped", f"{lost} right to wrong, {won} wrong to right ({test})"
    if results["same_answer_share"] is not None:
        yield "same answer as dense", percent(results["same_answer_share"])
    yield from _distance_facts(results["distance"])
    yield from _kept_facts(results["kept"]["total"], results["plan"])
    yield from _run_facts(results)


def _distance_facts(distance: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if kl := distance.get("kl"):
        value = f"{kl['value']:.4f} {kl['unit']} (95 % interval {kl['low']:.4f} to {kl['high']:.4f})"
        yield "KL divergence from dense", value
    if ppl := distance.get("perplexity"):
        ratio = f"ratio {ppl['ratio']:.4f} (95 % interval {ppl['low']:.4f} to {ppl['high']:.4f})"
        yield "perplexity", f"dense {ppl['dense']:.2f}, patched {ppl['patched']:.2f}, {ratio}"
    if "question_cosine" in distance:
        cosines = f"questions {distance['question_cosine']:.4f}, passages {distance['passage_cosine']:.4f}"
        yield "cosine with dense", f"{cosines}, means over embeddings"


def _run_facts(results: dict[str, Any]) -> Iterator[tuple[str, str]]:
    seconds, cached = results["seconds"], results["dense_from_cache"]
    known = f" ({cached} answers from the cache)" if cached else ""
    yield "time", f"dense {seconds['dense']:.1f} s{known}; patched {seconds['patched']:.1f} s, with the counting above"
    if ties := results["near_ties"]["dense"] + results["near_ties"]["patched"]:
        yield "near ties", f"{ties} answers that another batch size may change (margin below {NEAR_TIE:g})"
    if results["seen_in_calibration"]:
        yield "seen in calibration", f"{results['seen_in_calibration']} of these items: the verdict flatters"
    too_long, otherwise = results["dataset"]["left_out_too_long"], results["dataset"].get("left_out_otherwise", {})
    for reason, count in {TOO_LONG: too_long, **otherwise}.items():
        if count:
            yield "left out", f"{count} items {reason}"


def _kept_facts(kept: dict[str, Any], plan: dict[str, Any]) -> Iterator[tuple[str, str]]:
    thresholded = any(METHODS[entry["method"]].needs_thresholds for entry in plan.values())
    if kept["kept_share"] is not None:
        yield "attention elements kept", f"{percent(kept['kept_share'])} of all that is visible"
        if kept["long_rows"]:
            yield "in rows longer than k", f"{_spread(kept, 'long_kept_share')}, {kept['kept_per_k']:.2f} x k"
            if thresholded:
                yield "kept / k of single rows", per_k(kept)
        else:
            yield "in rows longer than k", "there was none: nothing was sparse"
    if kept["decode_v_rows_share"] is not None:
        yield "V rows kept in decoding", f"{_spread(kept, 'decode_v_rows_share')}, union over a KV head's queries"
    if kept["decode_kv_bytes_share"] is not None:
        share = percent(kept["decode_kv_bytes_share"])
        yield "KV bytes needed in decoding", f"{share} of dense: every K row, the V rows kept"
    if thresholded:
        yield "rows without a threshold", _of(kept["rows_without_threshold"], kept["long_rows"])
        yield "rows saved by min-keep", _of(kept["rows_saved_by_min_keep"], kept["long_rows"])
    if kept["cluster_scores_share"] is not None:
        distances = percent(kept["cluster_distances_share"])
        yield "attention scores computed", f"{percent(kept['cluster_scores_share'])} of dense, by clustered attention"
        yield "and k-means distances", f"{distances} of dense scores; each costs about as much as a score"
    if kept["activations_kept_share"] is not None:
        yield "feed-forward activations kept", percent(kept["activations_kept_share"])


def modules_table(results: dict[str, Any]) -> RenderableType:
    """What each module kept."""
    modules, plan = results["kept"]["modules"], results["plan"]
    by_row = {name for name, entry in plan.items() if issubclass(METHODS[entry["method"]], Budget)}
    header = ["module", "x k", "p5-p95", "kept %", "no theta", "min-keep", "V %", "p5-p95", "KV %"]
    rows = [
        [
            name,
            _ratio(row["kept_per_k"]),
            _between_percentiles(row, "kept_per_k", _ratio),
            _number(row["long_kept_share"]),
            str(row["rows_without_threshold"]),
            str(row["rows_saved_by_min_keep"]),
            _number(row["decode_v_rows_share"]),
            _between_percentiles(row, "decode_v_rows_share", _number),
            _number(row["decode_kv_bytes_share"]),
        ]
        for name, row in modules.items()
        if name in by_row
    ]
    others = [
        [name, *(_number(row[f"{key}_share"]) for key in ("cluster_scores", "cluster_distances", "activations_kept"))]
        for name, row in modules.items()
        if name not in by_row
    ]
    parts: list[RenderableType] = []
    if rows:
        title = "Kept per module in rows longer than k; V rows and KV bytes needed in decoding"
        parts.append(titled(title, grid(header, rows)))
    if rows and others:
        parts.append("")
    if others:
        title = "Clustered attention, against dense scores; feed-forward activations"
        parts.append(titled(title, grid(["module", "scores %", "distances %", "activations kept %"], others)))
    return Group(*parts)


def per_k(row: dict[str, Any]) -> str:
    """Kept / k of rows longer than k: the mean, and between which values nine of ten rows lie."""
    most = row["kept_per_k_p95"]
    high = f"{K_LIMIT} or more" if most >= K_LIMIT else f"{most:.2f}"
    return f"mean {row['kept_per_k']:.2f} (p5 {row['kept_per_k_p5']:.2f}, p95 {high})"


def _number(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _between_percentiles(row: dict[str, Any], key: str, shown: Callable[[float | None], str]) -> str:
    low, high = (row[f"{key}_{part}"] for part in ("p5", "p95"))
    return "-" if low is None else f"{shown(low)}-{shown(high)}"


def _spread(row: dict[str, Any], key: str) -> str:
    return f"{percent(row[key])} (p5 {percent(row[f'{key}_p5'])}, p95 {percent(row[f'{key}_p95'])})"


def _of(part: int, whole: int) -> str:
    return f"{part} of {whole} rows longer than k" + (f" ({percent(part / whole)})" if whole else "")
