"""Train a sparse autoencoder on a real model, score it beside its nulls, and write a page to look at."""

from monosem.lab import ActivationStream, Corpus, load_model, train
from monosem.lab.app.pages.report import write_report
from monosem.saes import Trainer, collect, evaluate

ROWS, LATENTS, TOKENS = 100_000, 4096, 8_192

model = load_model("smollm2-135m")
text = Corpus("docs:", model.tokenizer, split="train", document_tokens=128)
held_out = Corpus("docs:", model.tokenizer, split="heldout", document_tokens=128)

stream = ActivationStream(model, text, ["resid_post.12"], buffer=16_384, reuse=4)
trainer = Trainer.on(stream, "resid_post.12", "topk", n_latents=LATENTS, k=32, rows=ROWS)
run = train(stream, trainer, "runs/first")

sae = trainer.folded()
scores = evaluate(model, held_out, sae, tokens=TOKENS, ce_tokens=TOKENS // 8)
print(scores)
features = collect(model, held_out, sae, tokens=TOKENS, latents=64)
page = write_report(
    "runs/first/report.html", title="A first dictionary", evaluation=scores, metrics=run.metrics(), features=features
)
print(f"open {page}")
