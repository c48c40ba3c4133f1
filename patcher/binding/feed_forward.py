"""Feed-forward layers of a model, known by their down-projections, and what such a module does while it is patched.

Every family computes its inner activations in its own way (ReLU, GELU, gated ...) and then calls one linear module. Its
input is what top-k feed-forward selects from, so its name is all that differs between families.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from transformers.pytorch_utils import Conv1D

from ...errors import NotPatchableError
from ..kernels import feed_forward_kernel_of
from ..kernels.operator import feed_forward as feed_forward_operator
from ..kernels.weight_rows import forget
from ..meter import Meter
from ..methods.top_k_feed_forward import ActivationCounts, TopKFeedForward
from .feed_forward_layer import LayerPatch
from .modules import AttentionModule, attention_modules, layer_number

DOWN_PROJECTION = re.compile(
    r"(DenseReluDense\.wo"  # T5, mT5, UMT5, LongT5, Pop2Piano, UDOP, Pix2Struct
    r"|mlp\.down_proj"  # Llama, Mistral, Qwen, Gemma, Phi-3, OLMo, SmolLM
    r"|mlp\.c_proj|mlp\.dense_4h_to_h|mlp\.fc_out|mlp\.Wo"  # GPT-2, NeoX and BLOOM, GPT-J, ModernBERT
    r"|(?<!attention\.)output\.dense|ffn\.lin2|\.ffn_output"  # BERT and its kin, DistilBERT, ALBERT
    r"|feed_forward\.output_dense"  # Wav2Vec2, HuBERT
    r"|\.fc2)$"  # BART, OPT, Whisper, Marian, Pegasus, CLIP
)


@dataclass(frozen=True)
class FeedForwardModule:
    """The down-projection of one feed-forward layer. stack, layer: as in AttentionModule. d_ff: None if unknown."""

    name: str
    module: nn.Module
    stack: str
    layer: int | None
    d_ff: int | None

    kind: ClassVar[str] = "feed-forward"


@dataclass
class FeedForwardPatch:
    """Stands in for the forward of a down-projection while its model is patched: an object that deepcopy and pickle
    can carry along, unlike a closure.

    paths: how many calls went which way: "native", "triton", or "torch: " and why.
    """

    name: str
    module: nn.Module = field(repr=False)
    method: TopKFeedForward
    meter: Meter | None = None
    calls: int = 0
    paths: Counter[str] = field(default_factory=Counter)
    replaced: Any = None  # what stood in for the forward before, e.g. a hook of Accelerate
    layer: LayerPatch | None = field(default=None, repr=False)  # of the module around, where its form is known
    active: bool = False
    installed: bool = False

    def install(self) -> None:
        """Takes the place of the module's forward."""
        if not self.installed:
            self.replaced = self.module.__dict__.get("forward")
            if isinstance(self.replaced, FeedForwardPatch):  # one that an unpatched model left under a hook
                self.replaced = self.replaced.replaced
            self.module.forward = self
        self.active = self.installed = True
        if self.layer is not None:
            self.layer.install()
        if type(self.module) is nn.Linear and self._peculiarity() is None:
            prepare = getattr(feed_forward_kernel_of(self.module.weight.device.type), "prepare", None)
            if prepare is not None:
                prepare(self.module.weight, self.method)

    def uninstall(self) -> None:
        """Puts the module's own forward back. Where a hook was put over this one since, it stays and does nothing."""
        if isinstance(weight := getattr(self.module, "weight", None), Tensor):
            forget(weight)
        self.active = False
        if self.layer is not None:
            self.layer.uninstall()
        if self.module.__dict__.get("forward") is not self:
            return
        del self.module.__dict__["forward"]
        if self.replaced is not None:
            self.module.forward = self.replaced
        self.installed = False

    def __call__(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The module's output for the kept activations of hidden [..., d_ff]."""
        if not torch.compiler.is_compiling():
            return self._call(hidden, *args, **kwargs)
        if self._leaves_graph(hidden):
            return self._outside_graphs(hidden, *args, **kwargs)
        weight, bias, method = self.module.weight, self.module.bias, self.method
        is_rows = type(self.module) is Conv1D
        return feed_forward_operator(hidden, weight, bias, is_rows, method.k, method.keep)

    @torch.compiler.disable
    def _outside_graphs(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self._call(hidden, *args, **kwargs)

    def _leaves_graph(self, hidden: Tensor) -> bool:
        """Whether a call that is being compiled has to run outside the graph: for the same reasons as attention (see
        in_graph), and where a hook, a packed weight or autocast has its own way."""
        if not self.active or self.meter is not None or type(self.method) is not TopKFeedForward:
            return True
        if self._peculiarity() is not None or autocasts(hidden):
            return True
        tensors = (hidden, self.module.weight, self.module.bias)
        trains = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
        return trains and torch.compiler.is_dynamo_compiling()

    def _call(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self.active:
            return self._dense(hidden, *args, **kwargs)
        obstacle = self._obstacle(hidden)
        kernel = feed_forward_kernel_of(hidden.device.type)
        reason = obstacle or self._refusal(kernel, hidden)
        width = hidden.shape[-1]
        self.count(hidden.numel() // width, width, kernel.NAME if reason is None else f"torch: {reason}")
        if obstacle is None:
            weight, bias, is_rows = self.module.weight, self.module.bias, type(self.module) is Conv1D
            out = kernel.project_kept(hidden, weight, bias, is_rows, self.method, reason is not None)
            if out is not None:
                return out
        return self._dense(self.method.mask(hidden), *args, **kwargs)

    def count(self, tokens: int, width: int, path: str) -> None:
        """Remembers a call with so many tokens of so many inner activations, and which way it went."""
        self.calls += 1
        self.paths[path] += 1
        if self.meter is not None:
            kept = self.method.width(width)
            self.meter.add_activations(self.name, ActivationCounts(tokens * width, tokens * kept))

    def _dense(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the module does without this patch."""
        if self.replaced is not None:
            return self.replaced(hidden, *args, **kwargs)
        return type(self.module).forward(self.module, hidden, *args, **kwargs)

    def _obstacle(self, hidden: Tensor) -> str | None:
        """Why the weight cannot be read row by row in this call; None if it can."""
        if (peculiarity := self._peculiarity()) is not None:
            return peculiarity
        if not hidden.numel():
            return "no tokens"
        if autocasts(hidden):
            return "autocast"
        return None

    def _peculiarity(self) -> str | None:
        """Why the module is no plain linear layer; None if it is.

        Weights that a library packs are classes of their own, of the module or of its parameter.
        """
        if type(self.module) not in (nn.Linear, Conv1D):
            return f"a {type(self.module).__name__}"
        if self.replaced is not None:
            return "a hook on the module"
        if type(self.module.weight) not in (nn.Parameter, FakeTensor):  # fake: while torch.export traces
            return f"a weight of class {type(self.module.weight).__name__}"
        return None

    def _refusal(self, kernel: ModuleType, hidden: Tensor) -> str | None:
        """Why a kernel does not take a call of such a module; None if it does."""
        bias, weight = self.module.bias, self.module.weight
        if bias is not None and bias.requires_grad and torch.is_grad_enabled():
            return "gradients"
        view = weight if type(self.module) is Conv1D else weight.t()  # type: ignore[operator]
        reason: str | None = kernel.refusal(hidden, view, self.method)
        return reason


def autocasts(hidden: Tensor) -> bool:
    """Whether autocast is on for tensors on the device of hidden."""
    device = hidden.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def is_patched(module: nn.Module) -> bool:
    """Whether a feed-forward patch stands in for the module's forward and is at work."""
    forward = vars(module).get("forward")
    return isinstance(forward, FeedForwardPatch) and forward.active


def feed_forward_modules(model: nn.Module) -> list[FeedForwardModule]:
    """The down-projections of a model's feed-forward layers, in module order."""
    attention = attention_modules(model)
    return [
        FeedForwardModule(name, module, _stack(model, name, attention), layer_number(name), _d_ff(module))
        for name, module in model.named_modules()
        if DOWN_PROJECTION.search(name) and layer_number(name) is not None
    ]


def require_feed_forward_modules(model: nn.Module) -> list[FeedForwardModule]:
    """feed_forward_modules, or NotPatchableError for a mixture of experts and for models where none is recognised."""
    for name, module in model.named_modules():
        if type(module).__name__.endswith("Experts") or name.rpartition(".")[2] == "experts":
            raise NotPatchableError(
                f"the feed-forward layers of {type(model).__name__} cannot be patched: {name} is a mixture of experts "
                f"({type(module).__name__}), which keeps few activations already; patch its attention alone"
            )
    found = feed_forward_modules(model)
    if not found:
        raise NotPatchableError(
            f"no feed-forward layer of {type(model).__name__} is recognised: patch its attention alone"
        )
    return found


def _stack(model: nn.Module, name: str, attention: list[AttentionModule]) -> str:
    """The stack of the attention module that stands nearest; that of a language model if attention is unknown."""
    if attention and "decoder" not in name.split("."):
        return max(attention, key=lambda other: _shared(name, other.name)).stack
    language_model = type(model).__name__.endswith(("ForCausalLM", "LMHeadModel"))
    return "decoder" if language_model or "decoder" in name.split(".") else "encoder"


def _shared(one: str, other: str) -> int:
    """How many leading parts two names share."""
    same = 0
    for left, right in zip(one.split("."), other.split("."), strict=False):
        if left != right:
            break
        same += 1
    return same


def _d_ff(module: nn.Module) -> int | None:
    if isinstance(module, Conv1D):
        return int(module.weight.shape[0])
    width = getattr(module, "in_features", None)
    return width if isinstance(width, int) else None
