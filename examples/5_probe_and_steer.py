"""Fit a probe beside its nulls, then add its direction while the model runs: what is read need not be used."""

import torch
from monosem.lab import load_model
from monosem.probes import Labels, MeasureConfig, probe_sweep

THINGS = ("meal", "film", "room", "book", "walk", "song", "trip", "talk", "game", "show", "plan", "idea")
GOOD, BAD = ("great", "lovely", "superb", "delightful"), ("awful", "boring", "dreadful", "terrible")

model = load_model("smollm2-135m")
texts = [f"I found the {thing} {word}." for thing in THINGS for word in (*GOOD, *BAD)]
words = [word for _ in THINGS for word in (*GOOD, *BAD)]
labels = Labels.of([word in GOOD for word in words], groups=words)  # no word is on both sides of the split

sites = ["resid_post.4", "resid_post.12", "resid_post.20"]
sweep = probe_sweep(model, texts, labels, sites, ["mean_difference"], config=MeasureConfig(resamples=100))
for site in sites:
    auc = sweep[site]["mean_difference"].scores["auc"]
    print(f"{site}: AUC {auc.value:.2f}, nulls {auc.nulls}")

probe = sweep["resid_post.12"]["mean_difference"].probe
tokens = torch.tensor([model.tokenizer.encode("I watched it last night, and it was")])
pair = [model.tokenizer.encode(f" {word}")[0] for word in ("great", "terrible")]
length = float(model.capture(tokens, ["resid_post.12"])["resid_post.12"][0, 1:].norm(dim=-1).median())
for push in (-1, 0, 1):
    step = push * length * probe.direction.to(model.dtype)
    with model.editing({"resid_post.12": lambda x, step=step: x + step}):
        great, terrible = model.logits(tokens)[0, -1, pair].tolist()
    print(f"push {push:+d}: log-odds of great over terrible {great - terrible:.2f}")
