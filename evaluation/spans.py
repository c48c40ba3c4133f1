"""Extractive answers: a question and its passage in overlapping windows, and the best span over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SparsifyError
from ..patcher.binding.modules import input_device
from .inputs import accepted_inputs, text_limit
from .items import Question

# As the models on the Hub were trained and are evaluated.
WINDOW, STRIDE, MAX_ANSWER_LENGTH = 384, 128, 30


@dataclass(frozen=True)
class Window:
    """A question with one piece of its passage, without padding.

    inputs: the model's, n tokens each. offsets: int64 [n, 2], each token's first character in the passage and the one
    behind its last. context: bool [n], the tokens that an answer may begin and end with. null: the position whose
    scores say "no answer".
    """

    inputs: dict[str, list[int]]
    offsets: Tensor
    context: Tensor
    null: int

    def __len__(self) -> int:
        return len(self.inputs["input_ids"])


@dataclass(frozen=True)
class WindowEncoder:
    """Cuts questions with their passages into windows of max_length tokens that share `stride` tokens of the passage.

    names: the inputs that the model takes.
    """

    tokenizer: Any
    max_length: int
    stride: int
    names: tuple[str, ...]
    device: torch.device

    @classmethod
    def for_model(cls, model: Any, tokenizer: Any) -> WindowEncoder:
        """Windows of WINDOW tokens, or as many as the model has positions for. SparsifyError for a slow tokenizer."""
        if not getattr(tokenizer, "is_fast", False):
            raise SparsifyError(
                f"{type(tokenizer).__name__} does not say where in the passage its tokens are, which marking an answer "
                "needs: give the model a fast tokenizer (tokenizer.json)"
            )
        limit = text_limit(model, tokenizer)
        max_length = WINDOW if limit is None else min(WINDOW, limit)
        return cls(
            tokenizer, max_length, min(STRIDE, max_length // 3), accepted_inputs(model, tokenizer), input_device(model)
        )

    def windows(self, question: Question) -> list[Window]:
        """All windows of a question, in the order of the passage; none if they are too small for the question."""
        if not self._fits(question):
            return []
        encoded = self.tokenizer(
            question.question,
            question.context,
            truncation="only_second",
            max_length=self.max_length,
            stride=self.stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        return [self._window(encoded, index) for index in range(len(encoded["input_ids"]))]

    def _fits(self, question: Question) -> bool:
        """Whether the whole pair fits, or else every window would bring more of the passage than it shares."""
        asked, passage = (
            len(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
            for text in (question.question, question.context)
        )
        room = self.max_length - asked - self.tokenizer.num_special_tokens_to_add(pair=True)
        return 0 < passage <= room or self.stride < room < passage

    def _window(self, encoded: Any, index: int) -> Window:
        ids = encoded["input_ids"][index]
        offsets = torch.tensor(encoded["offset_mapping"][index])
        context = torch.tensor([part == 1 for part in encoded.sequence_ids(index)])
        cls = self.tokenizer.cls_token_id
        return Window(
            inputs={name: encoded[name][index] for name in self.names},
            offsets=offsets,
            # Some tokenizers have tokens that stand for no character: no answer begins or ends there.
            context=context & (offsets[:, 1] > offsets[:, 0]),
            null=ids.index(cls) if cls in ids else 0,
        )

    def batch(self, windows: Sequence[Window]) -> dict[str, Tensor]:
        """The model's inputs, int64 [B, n], padded on the right."""
        lists = {name: [window.inputs[name] for window in windows] for name in self.names}
        padded = self.tokenizer.pad(lists, padding="longest", padding_side="right", return_tensors="pt")
        return {name: padded[name].to(self.device) for name in self.names}


def span_logits(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """The scores of every token as an answer's first and last one, float32 [B, 2, n] on the CPU."""
    output = model(**inputs, use_cache=False)
    return torch.stack([output.start_logits, output.end_logits], 1).float().cpu()


def span_scores(logits: Tensor, context: Tensor, max_length: int = MAX_ANSWER_LENGTH) -> Tensor:
    """The scores of all spans of 1 to max_length tokens that begin and end in the context, [n, max_length] by first
    token and length - 1; minus infinity for what is no such span.

    logits: [2, n]; the score of a span is its first token's plus its last token's. context: bool [n].
    """
    starts, ends = logits.masked_fill(~context, -torch.inf)
    ends = nn.functional.pad(ends, (0, max_length - 1), value=-torch.inf).unfold(0, max_length, 1)
    return starts.unsqueeze(1) + ends


def best_span(logits: Tensor, context: Tensor, max_length: int = MAX_ANSWER_LENGTH) -> tuple[float, int, int]:
    """The score, first and last token of the best span. Of equal ones the earliest, and then the shortest, is best."""
    scores = span_scores(logits, context, max_length)
    first, longer = divmod(int(scores.argmax()), max_length)
    return float(scores[first, longer]), first, first + longer


def answer_span(
    passage: str, windows: Sequence[Window], logits: Sequence[Tensor], *, version_2: bool = False
) -> tuple[str, float]:
    """The text of the best span over all windows, and how far its score is above that of another answer.

    logits: [2, n] for each window. With version_2 the text is "" if "no answer" scores higher, in the window that
    speaks against it most.
    """
    found = [span for window, scores in zip(windows, logits, strict=True) for span in _best_two(scores, window)]
    score, place = max(found, key=lambda span: span[0])
    second = max((other for other, elsewhere in found if elsewhere != place), default=-torch.inf)
    text = passage[slice(*place)]
    if not version_2:
        return text, _finite(score - second)
    null = min(float(s[:, w.null].sum()) for w, s in zip(windows, logits, strict=True))
    return (text, _finite(min(score - second, score - null))) if null <= score else ("", _finite(null - score))


def _best_two(logits: Tensor, window: Window) -> list[tuple[float, tuple[int, int]]]:
    """The scores and places in the passage of a window's best span (as best_span) and of the next best."""
    score, first, last = best_span(logits, window.context)
    others = span_scores(logits, window.context)
    others[first, last - first] = -torch.inf
    index, longer = divmod(int(others.argmax()), others.shape[1])
    spans = [(score, first, last), (float(others[index, longer]), index, index + longer)]
    return [
        (value, (int(window.offsets[begin, 0]), int(window.offsets[end, 1])))
        for value, begin, end in spans
        if value > -torch.inf
    ]


def _finite(margin: float) -> float:
    """A margin as JSON can hold it; a passage of one token has no second span."""
    return min(margin, torch.finfo(torch.float32).max)


def span_kl(dense: Tensor, patched: Tensor, window: Window) -> float:
    """KL(dense || patched) of a window, in nats: the mean of that of the first and that of the last token.

    The distributions are those over the context's tokens and "no answer". dense, patched: logits [2, n].
    """
    places = window.context.clone()
    places[window.null] = True
    p, q = (logits[:, places].log_softmax(-1) for logits in (dense, patched))
    return float((p.exp() * (p - q)).sum(-1).clamp(min=0).mean())
