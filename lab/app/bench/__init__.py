"""Benchmarks beside peers, or against what was planted: what `monosem bench` runs, one file for each.

`BENCHES` holds the module and the class of each by name, imported when the benchmark is run.
"""

BENCHES: dict[str, str] = {
    "kernels": "kernels.BenchKernels",
    "step": "step.BenchStep",
    "train": "train.BenchTrain",
    "architectures": "architectures.BenchArchitectures",
    "recipe": "recipe.BenchRecipe",
    "pipeline": "pipeline.BenchPipeline",
    "recovery": "recovery.BenchRecovery",
    "harvest": "harvest.BenchHarvest",
    "buffer": "buffer.BenchBuffer",
    "eval": "eval.BenchEval",
    "splice": "splice.BenchSplice",
    "itda": "itda.BenchItda",
    "probing": "probing.BenchProbing",
    "layer-sweep": "layer_sweep.BenchLayerSweep",
}
