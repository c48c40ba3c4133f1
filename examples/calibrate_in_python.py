"""Fit top-theta thresholds on samples of your own, and see how close to k they keep on a new text.

python examples/calibrate_in_python.py
"""

from __future__ import annotations

import hf_sparsify
from hf_sparsify import Meter, TopK
from hf_sparsify.evaluation.demo import demo_model_path
from hf_sparsify.evaluation.sources import load_items
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

model = AutoModelForSeq2SeqLM.from_pretrained(demo_model_path("demo-t5")).eval()
tokenizer = AutoTokenizer.from_pretrained(demo_model_path("demo-t5"))


def samples(split: str, count: int) -> list[dict]:
    """Inputs of the model's forward, one sequence each and without padding: here a question and its answer."""
    made = []
    for question in load_items("demo", split).sample(count, seed=0).items:
        inputs = tokenizer(f"question: {question.question} context: {question.context}", return_tensors="pt")
        answer = tokenizer(question.answers[0], return_tensors="pt").input_ids
        made.append({**inputs, "decoder_input_ids": model._shift_right(answer)})
    return made


hf_sparsify.patch(model, TopK(k=32), kind="self", stack="encoder")
patch = hf_sparsify.calibrate(model, samples("train", 12))
for module in patch.attention_patches:
    thresholds = module.thresholds
    print(f"{module.name}: {module.method.name}, thresholds for {thresholds.heads if thresholds else 0} heads")

with patch.metered(Meter()) as meter:
    for inputs in samples("validation", 4):
        model(**inputs)
total = meter.total().summary()
print(f"kept on new texts: {total['kept_per_k']:.2f} x k, {total['kept_share']:.1%} of all that is visible")
