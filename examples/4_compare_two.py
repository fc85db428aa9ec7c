"""Train two dictionaries on one stream, match their latents, and say how much of the match is chance."""

from monosem.lab import ActivationStream, Corpus, load_model, train
from monosem.saes import Trainer
from monosem.saes.analysis import compare_decoders

ROWS, LATENTS = 50_000, 2048

model = load_model("smollm2-135m")
text = Corpus("docs:", model.tokenizer, split="train", document_tokens=128)
stream = ActivationStream(model, text, ["resid_post.12"], buffer=16_384, reuse=4)
trainers = [
    Trainer.on(stream, "resid_post.12", architecture, n_latents=LATENTS, k=32, rows=ROWS)
    for architecture in ("topk", "batchtopk")
]
train(stream, trainers, "runs/two")

first, second = (trainer.folded() for trainer in trainers)
for name, evidence in compare_decoders(first, second).items():
    print(f"{name:12} {evidence}")

# Two models are compared by `monosem compare smollm2-135m minilm`, or by their layers in Python:
# from monosem.saes.analysis import compare_rows
