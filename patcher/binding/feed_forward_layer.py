"""Whole feed-forward layers while they are trained: where their form is known, they need memory for what is kept alone.

A patch at the down-projection comes too late for that, since autograd has all activations by then. So another one
stands in for the forward of the module around it, and does something only where gradients are wanted.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from ..methods.feed_forward_gradients import Inner, Projection, feed_forward_kept
from ..methods.functional import transforms_active
from ..methods.top_k_feed_forward import TopKFeedForward

if TYPE_CHECKING:
    from .feed_forward import FeedForwardPatch


class Form(NamedTuple):
    """The names of a layer's modules. up: one projection, or two of a gated layer. inner: dropout before the
    down-projection. outer: dropout after it. halves: the one module of a gated layer holds both projections, and the
    activation function goes to the first."""

    up: tuple[str, ...]
    activation: str
    down: str
    inner: str | None = None
    outer: str | None = None
    halves: bool = False

    @property
    def names(self) -> set[str]:
        return {name for name in (*self.up, self.activation, self.down, self.inner, self.outer) if name is not None}


FORMS = (
    Form(("wi",), "act", "wo", inner="dropout"),  # T5
    Form(("wi_0", "wi_1"), "act", "wo", inner="dropout"),  # T5 1.1, UMT5, Pix2Struct
    Form(("gate_proj", "up_proj"), "act_fn", "down_proj"),  # Llama, Mistral, Qwen, Gemma, SmolLM
    Form(("gate_up_proj",), "activation_fn", "down_proj", halves=True),  # Phi-3, GLM
    Form(("c_fc",), "act", "c_proj", outer="dropout"),  # GPT-2, GPT-Neo
    Form(("fc_in",), "act", "fc_out", outer="dropout"),  # GPT-J, CodeGen
    Form(("dense_h_to_4h",), "act", "dense_4h_to_h"),  # GPT-NeoX, Persimmon
    Form(("fc1",), "activation_fn", "fc2"),  # CLIP, ViT, Phi
    Form(("Wi",), "act", "Wo", inner="drop", halves=True),  # ModernBERT
    Form(("intermediate_dense",), "intermediate_act_fn", "output_dense", "intermediate_dropout", "output_dropout"),
)  # Wav2Vec2 and its kin

# All that the forward of such a layer calls and reads, beside its own modules: no other factor, no other step.
PLAIN = {"to", "dtype", "int8", "isinstance", "torch", "Tensor", "weight"}
# Activation functions that work on each element, and give the same each time.
ELEMENTWISE = {nn.GELU} | {
    type(ACT2FN[name])
    for name in ("relu", "relu2", "gelu", "gelu_fast", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "silu", "swish")
}
PROBES = 4  # random tokens that show whether a module gives what its form says


@dataclass
class LayerPatch:
    """Stands in for the forward of the module around a patched down-projection."""

    module: nn.Module = field(repr=False)
    form: Form
    down: FeedForwardPatch = field(repr=False)
    confirmed: bool | None = None  # whether the module gives what its form says; None before the first training call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The layer's output [..., d_model] for hidden [..., d_model], its one argument."""
        if kwargs or len(args) != 1 or not isinstance(args[0], Tensor) or not self._trains(args[0]):
            return self._ordinary(*args, **kwargs)
        if not torch.compiler.is_compiling():
            return self._train(args[0])
        # A graph cannot hold what is kept, and torch.export has no gradients.
        return self._outside_graphs(args[0]) if torch.compiler.is_dynamo_compiling() else self._ordinary(args[0])

    def install(self) -> None:
        """Takes the place of the module's forward, unless something else did."""
        if "forward" not in vars(self.module):
            self.module.forward = self

    def uninstall(self) -> None:
        """Puts the module's own forward back."""
        if vars(self.module).get("forward") is self:
            del self.module.__dict__["forward"]

    @torch.compiler.disable
    def _outside_graphs(self, hidden: Tensor) -> Tensor:
        return self._train(hidden)

    def _ordinary(self, *args: Any, **kwargs: Any) -> Any:
        return type(self.module).forward(self.module, *args, **kwargs)

    def _trains(self, hidden: Tensor) -> bool:
        return (
            self.down.active
            and torch.is_grad_enabled()
            and (hidden.requires_grad or any(parameter.requires_grad for parameter in self.module.parameters()))
        )

    def _train(self, hidden: Tensor) -> Any:
        if not self._takes(hidden):
            return self._ordinary(hidden)
        d_ff = _matrix(self._part(self.form.down)).shape[1]
        k = self.down.method.width(d_ff)
        if k >= d_ff or not self._confirms(hidden, d_ff):
            return self._ordinary(hidden)
        self.down.count(hidden.numel() // hidden.shape[-1], d_ff, "torch: gradients of a whole layer")
        dropout = self._part(self.form.inner) if self.form.inner is not None else None
        out = self._kept(hidden, k, dropout.p if dropout is not None and dropout.training else 0.0)
        return out if self.form.outer is None else self._part(self.form.outer)(out)

    def _kept(self, hidden: Tensor, k: int, dropout: float) -> Tensor:
        """What the form says, before the outer dropout."""
        form, dtype = self.form, _working_dtype(hidden)
        down = _projection(self._part(form.down), dtype)
        up = [half for name in form.up for half in _halves(_projection(self._part(name), dtype), down[0].shape[1])]
        with torch.autocast(hidden.device.type, enabled=False):
            return feed_forward_kept(hidden.to(dtype), up, Inner(self._part(form.activation), dropout), down, k)

    def _takes(self, hidden: Tensor) -> bool:
        """Whether the modules are as `FORMS` says in this call, and nothing else waits for theirs."""
        linears = [self._part(name) for name in (*self.form.up, self.form.down)]
        return (
            bool(hidden.numel())
            and not transforms_active()
            and type(self.down.method) is TopKFeedForward
            and all(_plain(part, hidden) for part in linears)
            and not any(_watched(self._part(name)) for name in self.form.names)
        )

    def _confirms(self, hidden: Tensor, d_ff: int) -> bool:
        """Whether the module's own forward gives the same where all is kept. Names do not show the order of operands, a
        factor or a residual."""
        if self.confirmed is None:
            # Dispatch modes, e.g. of selective checkpoints, would take this for a part of the layer.
            with torch.no_grad(), _disable_current_modes():
                probe = torch.randn(PROBES, hidden.shape[-1], generator=torch.Generator().manual_seed(0))
                probe = probe.to(hidden.device, hidden.dtype)
                own, ours = type(self.module).forward(self._dense_twin(), probe), self._kept(probe, d_ff, 0.0)
                allowed = torch.finfo(ours.dtype).eps ** 0.5 * own.float().norm()
                self.confirmed = bool((own - ours).float().norm() <= allowed)
        return self.confirmed

    def _dense_twin(self) -> nn.Module:
        """The module with the same parameters, no dropout and no patch: calls of it draw no random numbers."""
        twin, down = copy.copy(self.module), copy.copy(self._part(self.form.down))
        vars(down).pop("forward", None)
        dropouts = {name: nn.Identity() for name in (self.form.inner, self.form.outer) if name is not None}
        vars(twin)["_modules"] = {**self.module._modules, self.form.down: down, **dropouts}
        return twin

    def _part(self, name: str) -> Any:
        return getattr(self.module, name)


def layer_patch(parent: nn.Module, down: FeedForwardPatch) -> LayerPatch | None:
    """The patch of the module around a down-projection; None where its form is not known."""
    names = {name for name, _ in parent.named_children()}
    for form in FORMS:
        if names == form.names and getattr(parent, form.down) is down.module and _is_of_form(parent, form):
            return LayerPatch(parent, form, down)
    return None


def _is_of_form(parent: nn.Module, form: Form) -> bool:
    """Whether a module with the names of a form may also calculate what the form says, from one argument."""
    code = getattr(type(parent).forward, "__code__", None)
    if not type(parent).__module__.startswith("transformers.models.") or code is None or code.co_argcount != 2:
        return False
    more = code.co_kwonlyargcount or code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS)
    called = PLAIN | form.names | ({"chunk"} if form.halves else set())
    dropouts = [getattr(parent, name) for name in (form.inner, form.outer) if name is not None]
    return (
        not more
        and set(code.co_names) <= called
        and ("chunk" in code.co_names) == form.halves
        and _fit(getattr(parent, form.up[0]), getattr(parent, form.down), 2 if form.halves else 1)
        and _elementwise(getattr(parent, form.activation))
        and all(type(dropout) is nn.Dropout for dropout in dropouts)
    )


def _fit(up: Any, down: Any, times: int) -> bool:
    """Whether two linear modules stand one behind the other. Weights that DeepSpeed partitions have no shape."""
    if any(type(part) not in (nn.Linear, Conv1D) or part.weight.ndim != 2 for part in (up, down)):
        return False
    return bool(_matrix(up).shape[0] == times * _matrix(down).shape[1])


def _elementwise(activation: Any) -> bool:
    return type(activation) in ELEMENTWISE and not getattr(activation, "inplace", False)


def _plain(part: Any, hidden: Tensor) -> bool:
    """Whether a linear module has an ordinary weight that goes with hidden, and its own forward or only our patch."""
    if type(part) not in (nn.Linear, Conv1D) or type(part.weight) is not nn.Parameter:
        return False
    if part.weight.ndim != 2 or part.weight.is_meta:
        return False
    autocast = torch.is_autocast_enabled(hidden.device.type)
    return part.weight.device == hidden.device and (autocast or part.weight.dtype == hidden.dtype)


def _watched(part: nn.Module) -> bool:
    """Whether something waits for a module's calls, or changes them."""
    forward = vars(part).get("forward")
    replaced = forward is not None and getattr(forward, "replaced", forward) is not None
    return replaced or bool(
        part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks
    )


def _working_dtype(hidden: Tensor) -> torch.dtype:
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def _projection(part: Any, dtype: torch.dtype) -> Projection:
    return _matrix(part).to(dtype), None if part.bias is None else part.bias.to(dtype)


def _halves(up: Projection, d_ff: int) -> list[Projection]:
    """Both projections of a gated layer where one module holds them."""
    weight, bias = up
    if len(weight) == d_ff:
        return [up]
    return list(zip(weight.split(d_ff), (None, None) if bias is None else bias.split(d_ff), strict=True))


def _matrix(part: Any) -> Tensor:
    """The weight as [outputs, inputs]."""
    weight: Tensor = part.weight
    return weight.t() if type(part) is Conv1D else weight
