"""`--set PATTERN=METHOD,OPTION=VALUE`: what it means, which modules it reaches, and what it says to nonsense."""

from __future__ import annotations

import pytest
import tiny_models
from hf_sparsify.errors import NotPatchableError, UsageError
from hf_sparsify.patcher.methods import Clustered, Method, TopK, TopKFeedForward, TopTheta
from hf_sparsify.patcher.overrides import parse_override
from hf_sparsify.patcher.plan import plan_model

SELF = "encoder.block.{}.layer.0.SelfAttention"
FFN = "encoder.block.{}.layer.1.DenseReluDense.wo"


@pytest.mark.parametrize(
    ("text", "pattern", "method"),
    [
        (r"re:encoder\..*=clustered,clusters=100", r"re:encoder\..*", Clustered(clusters=100)),
        ("a.b=clustered,clusters=3,k=5,min-length=7,seed=1", "a.b", Clustered(3, min_length=7, seed=1, k=5)),
        ("a.b=top-k,k=8,protect-first=2", "a.b", TopK(k=8, protect_first=2, compensation="sdc+vmc")),
        ("a.b=top-k,keep=0.25,protect_recent=1", "a.b", TopK(keep=0.25, protect_recent=1, compensation="sdc+vmc")),
        ("a.b=top-theta,k=8,min_keep=2,compensation=none", "a.b", TopTheta(k=8, min_keep=2)),
        (
            "a.b=top-k,k=8,compensation=sdc+vmc,v-mean=dropped",
            "a.b",
            TopK(k=8, compensation="sdc+vmc", v_mean="dropped"),
        ),
        (
            "a.b=top-theta,k=8,placement=max-relative,denominator=exp-threshold,compensation=sdc",
            "a.b",
            TopTheta(k=8, placement="max-relative", denominator="exp-threshold", compensation="sdc"),
        ),
        (
            "a.b=top-theta,k=8,min-length=7,compensation=none",
            "a.b",
            TopTheta(k=8, min_length=7),
        ),
        ("a.b=top-k-feed-forward,k=16", "a.b", TopKFeedForward(k=16)),
        ("a.b=none", "a.b", None),
        ("re:a(?=b)b=top-k,k=1", "re:a(?=b)b", TopK(k=1, compensation="sdc+vmc")),
        ("re:(a|b),c=top-k,k=1", "re:(a|b),c", TopK(k=1, compensation="sdc+vmc")),
    ],
)
def test_what_is_typed_means(text: str, pattern: str, method: Method | None) -> None:
    override = parse_override(text)
    assert (override.pattern, override.method) == (pattern, method)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("encoder", "is not PATTERN=METHOD"),
        ("=top-k", "is not PATTERN=METHOD"),
        ("a=", "is not PATTERN=METHOD"),
        ("a=top-k,k", "is not PATTERN=METHOD"),
        ("a=magic", "unknown method 'magic'"),
        ("a=none,k=3", "has no options"),
        ("a=top-k,k=many", "k must be a whole number of at least 1, not 'many'"),
        ("a=top-k,keep=half", "keep must be a fraction in (0, 1], not 'half'"),
        ("a=top-k,keep=nan", "keep must be a fraction in (0, 1], not nan"),
        ("a=top-k,k=3,compensation=vmc", "use sdc+vmc"),
        ("a=top-k,k=3,compensation=1", "compensation must be one of"),
        ("a=top-theta,k=3,placement=softmax", "placement must be one of"),
        ("a=clustered,clusters=many", "'many'"),
        ("a=top-k,k=0", "k must be a whole number of at least 1"),
        ("a=top-k,k=2.5", "k must be a whole number"),
        ("a=top-k", "give exactly one of k"),
        ("a=top-k,clusters=3", "has no option 'clusters'"),
        ("re:(=top-k,k=1", "is no regular expression"),
    ],
)
def test_nonsense_is_named(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match="--set") as caught:
        parse_override(text)
    assert reason in str(caught.value)


def plan(*overrides: str, attention: TopK | None = None, feed_forward: TopKFeedForward | None = None) -> dict:
    return plan_model(
        tiny_models.build("t5"), attention, feed_forward, overrides=[parse_override(text) for text in overrides]
    )


def test_an_expression_reaches_the_modules_that_its_method_is_for() -> None:
    base, exception = TopK(k=4), Clustered(clusters=3)
    made = plan(r"re:encoder\..*=clustered,clusters=3", attention=base, feed_forward=TopKFeedForward(k=5))
    assert {name for name, method in made.items() if method == exception} == {SELF.format(0), SELF.format(1)}
    assert {type(method) for name, method in made.items() if ".DenseReluDense." in name} == {TopKFeedForward}
    assert {method for name, method in made.items() if name.startswith("decoder") and "Attention" in name} == {base}
    only_feed_forward = plan("re:.*=top-k-feed-forward,k=2")
    assert set(only_feed_forward.values()) == {TopKFeedForward(k=2)}
    assert len(only_feed_forward) == 4


def test_a_plain_pattern_is_one_whole_name() -> None:
    made = plan(f"{SELF.format(1)}=top-k,k=2", attention=TopK(k=4))
    assert made[SELF.format(1)] == TopK(k=2, compensation="sdc+vmc")
    assert made[SELF.format(0)] == TopK(k=4)
    with pytest.raises(UsageError, match="no module that can be patched matches 'encoder'"):
        plan("encoder=top-k,k=2", attention=TopK(k=4))
    with pytest.raises(UsageError, match="no module that can be patched matches 're:encoder'"):
        plan("re:encoder=top-k,k=2", attention=TopK(k=4))


def test_the_last_override_wins_and_none_leaves_dense() -> None:
    made = plan("re:.*Attention=top-k,k=2", "re:decoder.*=none", f"{SELF.format(0)}=top-k,k=3")
    assert list(made) == [SELF.format(0), SELF.format(1)]
    assert [method.k for method in made.values()] == [3, 2]


def test_plan_is_in_the_order_of_the_model() -> None:
    made = plan(f"{FFN.format(0)}=top-k-feed-forward,k=2", f"{SELF.format(1)}=top-k,k=1", f"{SELF.format(0)}=top-k,k=1")
    assert list(made) == [SELF.format(0), SELF.format(1), FFN.format(0)]


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        (f"{FFN.format(0)}=top-k,k=2", "matches no attention, which is what top-k is for"),
        (f"{SELF.format(0)}=top-k-feed-forward,k=2", "matches no feed-forward layer"),
        ("re:.*=none", "nothing is left to patch"),
    ],
)
def test_an_override_that_reaches_nothing(override: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        plan(override)


def test_a_method_where_it_does_not_work_is_refused_by_name() -> None:
    with pytest.raises(NotPatchableError, match=r"decoder\.block\.0\.layer\.0\.SelfAttention is causal self-attention"):
        plan(r"re:decoder.*SelfAttention=clustered")
    with pytest.raises(NotPatchableError, match="EncDecAttention is cross-attention"):
        plan(r"re:decoder.*EncDecAttention=clustered-plain,clusters=2")
