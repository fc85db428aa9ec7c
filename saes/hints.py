"""Advice for people who come from SAELens, dictionary_learning or sparsify: the nearest thing here to a name there."""

from __future__ import annotations

from types import MappingProxyType

_RUNNER = "Trainer trains a dictionary on a monosem.lab.ActivationStream, and monosem.lab.train runs it"
_STREAM = "monosem.lab.ActivationStream reads a model's activations, monosem.lab.ActivationStore a folder of them"
_CONFIG = "the architecture's config (SAEConfig, ...) has the sizes, TrainConfig the training"

HINTS = MappingProxyType(
    {
        "SAE": "load(...) reads SAELens' files",
        "StandardSAE": "architectures.ReLU is the dictionary with an L1 penalty; load(...) reads SAELens' files",
        "TopKSAE": "TopK is the dictionary; load(...) reads SAELens' files",
        "BatchTopKTrainingSAE": "BatchTopK is the dictionary, and Trainer trains it",
        "JumpReLUSAE": "JumpReLU is the dictionary; load(...) reads SAELens' files",
        "GatedSAE": "architectures.Gated is the dictionary; load(...) reads SAELens' files",
        "MatryoshkaBatchTopKTrainingSAE": "architectures.Matryoshka is the dictionary, and Trainer trains it",
        "Transcoder": "a transcoder is any architecture with d_out, such as TopK(SAEConfig(..., d_out=576))",
        "SkipTranscoder": "a skip transcoder is any architecture with d_out and skip=True",
        "TrainingSAE": _RUNNER,
        "TrainingRunner": _RUNNER,
        "SAETrainingRunner": _RUNNER,
        "LanguageModelSAETrainingRunner": _RUNNER,
        "SAETrainer": _RUNNER,
        "LanguageModelSAERunnerConfig": f"{_CONFIG}, monosem.lab.StreamConfig the stream",
        "LoggingConfig": "monosem.lab.Run writes metrics.jsonl, and --trackers sends them to wandb",
        "HookedSAETransformer": "monosem.lab.load_model opens a model, and Edit writes a dictionary into it",
        "HookedTransformer": "monosem.lab.load_model opens a model",
        "ActivationsStore": _STREAM,
        "CacheActivationsRunner": "`monosem harvest` writes a monosem.lab.ActivationStore",
        "from_pretrained": "load(...) reads a folder, 'hf:ORG/REPO' or 'sae-lens:RELEASE/ID'",
        "load_from_disk": "load(...) reads a folder of monosem's or of another library",
        "load_from_pretrained": "load(...) reads a folder, 'hf:ORG/REPO' or 'sae-lens:RELEASE/ID'",
        "AutoEncoder": "load(...) reads dictionary_learning's files; architectures.ReLU is the dictionary",
        "AutoEncoderTopK": "load(...) reads dictionary_learning's files; TopK is the dictionary",
        "BatchTopKSAE": "load(...) reads dictionary_learning's files; BatchTopK is the dictionary",
        "JumpReluAutoEncoder": "load(...) reads dictionary_learning's files; JumpReLU is the dictionary",
        "CrossCoder": "a crosscoder is any architecture with sources, such as TopK(SAEConfig(..., sources=(576, 576)))",
        "trainSAE": _RUNNER,
        "ActivationBuffer": _STREAM,
        "Sae": "load(...) reads sparsify's files",
        "SparseCoder": "load(...) reads sparsify's files",
        "SaeConfig": _CONFIG,
        "SparseCoderConfig": _CONFIG,
        "SaeTrainer": _RUNNER,
    }
)
"""Sentence by the name in the other library."""

OPTIONS = MappingProxyType(
    {
        "d_sae": "n_latents is the number of latents",
        "dict_size": "n_latents is the number of latents",
        "expansion_factor": "n_latents is the number of latents: give the factor times the width",
        "training_tokens": "rows is the number of activation rows to train on",
        "l1_coefficient": "k is the codes a row that the penalty is steered to, and coefficient a weight of your own",
        "l0_coefficient": "k is the codes a row that the penalty is steered to, and coefficient a weight of your own",
        "dead_feature_window": "dead_after is the rows after which a latent counts as dead",
        "context_size": "monosem.lab.Corpus(..., context=) is the tokens of a row",
        "train_batch_size_tokens": "monosem.lab.ActivationStream(..., batch=) is the rows of a step",
        "batch_size": "monosem.lab.ActivationStream(..., batch=) is the rows of a step",
        "hook_name": "the place is the second argument, such as 'resid_post.12'",
        "device": "the dictionary stands where the model of the stream stands: load_model(..., device=)",
        "dtype": "weights are fp32, and precision= chooses the products",
    }
)
"""Sentence by the option of training that the other library has."""

KINDS = MappingProxyType({"standard": "relu", "standard_transcoder": "relu", "vanilla": "relu", "l1": "relu"})
"""Architecture of monosem by its name in another library."""

ATTRIBUTES = MappingProxyType(
    {
        "from_pretrained": "monosem.saes.load(...) reads a folder, 'hf:ORG/REPO' or 'sae-lens:RELEASE/ID'",
        "load_from_disk": "monosem.saes.load(...) reads a folder of monosem's or of another library",
        "load_from_hub": "monosem.saes.load('hf:ORG/REPO') reads it",
        "save_model": "dictionary.save(folder) writes it, formats.write(..., to='sae-lens') as SAELens does",
        "cfg": "dictionary.config has the sizes, dictionary.place the sites and dictionary.provenance the model",
        "hook_name": "dictionary.place names the sites",
        "hook_layer": "dictionary.place names the sites",
        "activation_dim": "dictionary.d_in is the width",
        "dict_size": "dictionary.n_latents is the number of latents",
        "d_sae": "dictionary.n_latents is the number of latents",
    }
)
"""Sentence by the attribute that a dictionary has in the other library."""
