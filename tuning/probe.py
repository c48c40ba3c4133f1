"""Calling modules of a dense model once more, sparse, on just the inputs that they get there.

A hook on each module calls it again with every plan in turn, looks at what comes out, and lets the model go on with
the dense output. All that is downstream is dense, to the bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from ..patcher.binding.modules import holders_of, unwrapped
from ..patcher.binding.patching import Patch, prepare_patch
from ..patcher.meter import Meter
from ..patcher.methods import Method

LAST_ROWS = 32  # of a longer pass, that stand for decoding steps


@dataclass(frozen=True)
class Seen:
    """One call of a module, dense and with each plan.

    stream: the residual stream [B, q, d] with the dense output in it: what the layer that the module is in got, and the
    outputs of its modules so far. dense, sparse: the module's output [B, q, d]. heads, sparse_heads: what attention
    gives for each head, [B, H, q, E], None where that is not seen. seconds: of the dense call and of one with each
    plan, where asked.
    """

    name: str
    stream: Tensor
    dense: Tensor
    sparse: list[Tensor]
    heads: Tensor | None
    sparse_heads: list[Tensor | None]
    seconds: tuple[float, list[float]] | None


@dataclass
class Probe:
    """The hooks, on the modules that every plan names. plans: the first keeps all, as the reference for single heads.

    decoding: count V rows of the last rows too, which takes the plain torch path. timed: time the calls, in turn.
    meters: what each plan kept.
    """

    model: nn.Module
    plans: Sequence[Mapping[str, Method]]
    look: Callable[[Seen], None]
    decoding: bool = False
    timed: bool = False
    meters: list[Meter] = field(init=False)
    _patches: list[Patch] = field(init=False)
    _streams: dict[nn.Module, Tensor] = field(init=False, default_factory=dict)
    _busy: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.model = unwrapped(self.model)
        self.meters = [Meter(last_rows_are_steps=LAST_ROWS if self.decoding else 0) for _ in self.plans]
        self._patches = [prepare_patch(self.model, plan) for plan in self.plans]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """The dense model's modules are looked at inside the block, without gradients."""
        with ExitStack() as stack, torch.inference_mode():
            for name in self.plans[0]:
                module, layer = self.model.get_submodule(name), layer_of(self.model, name)
                stack.callback(layer.register_forward_pre_hook(self._keep_stream, with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(self._looker(name, layer), with_kwargs=True).remove)
            try:
                yield
            finally:
                self._streams.clear()
                self._busy = False

    def _keep_stream(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if tensors and not self._busy:
            self._streams[layer] = tensors[0]

    def _looker(self, name: str, layer: nn.Module) -> Callable[..., None]:
        def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if self._busy:
                return
            self._busy = True
            # Called again, a module would append to the cache what is there already.
            kwargs = {key: None if isinstance(value, Cache) else value for key, value in kwargs.items()}
            try:
                self.look(self._seen(name, layer, args, kwargs, _first(output)))
            finally:
                self._busy = False

        return look

    def _seen(self, name: str, layer: nn.Module, args: Any, kwargs: Any, dense: Tensor) -> Seen:
        module = self.model.get_submodule(name)
        seconds = self._time(module, args, kwargs) if self.timed else None
        outputs, heads = [], []
        for patch, meter in zip(self._patches, self.meters, strict=True):
            watched = _Watcher()
            target = next((one for one in patch.attention_patches if one.name == name), None)
            with patch.resumed(), patch.metered(meter):
                if target is not None:
                    target.watcher = watched
                outputs.append(_first(module(*args, **kwargs)))
            if target is not None:
                target.watcher = None
            heads.append(watched.output)
        return Seen(name, self._stream_after(layer, dense), dense, outputs[1:], heads[0], heads[1:], seconds)

    def _stream_after(self, layer: nn.Module, output: Tensor) -> Tensor:
        """The residual stream with a module's output, on its device; the output alone where what its layer got is no
        such stream."""
        before = self._streams.get(layer)
        # With several devices a layer gets its input before it is moved to the layer's own.
        after = output if before is None or before.shape != output.shape else before.to(output.device) + output
        self._streams[layer] = after
        return after

    def _time(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[float, list[float]]:
        """Seconds of one dense call and of one with each plan but the first, uncounted."""
        dense, sparse = _timed(module, args, kwargs), []
        for patch in self._patches[1:]:
            with patch.resumed():
                sparse.append(_timed(module, args, kwargs))
        return dense, sparse


@dataclass
class _Watcher:
    output: Tensor | None = None

    def __call__(self, output: Tensor) -> None:
        self.output = output


def layer_of(model: nn.Module, name: str) -> nn.Module:
    """The layer that a module is in: what holds it and stands itself in a list of modules, the nearest such; else the
    module itself."""
    for holder in holders_of(name):
        parent = holder.rpartition(".")[0]
        if holder and isinstance(model.get_submodule(parent), nn.ModuleList):
            return model.get_submodule(holder)
    return model.get_submodule(name)


def _first(output: Any) -> Tensor:
    """A module's output; attention gives weights or a cache beside it."""
    return output if isinstance(output, Tensor) else output[0]


def _timed(module: nn.Module, args: Any, kwargs: Any) -> float:
    _synchronize()
    start = time.perf_counter()
    module(*args, **kwargs)
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
