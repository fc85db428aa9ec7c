"""Commands: one file for each, with the options that no other command has.

`COMMANDS` holds every command by its group and name: the module and the class, imported when the command is used.
"""

COMMANDS: dict[str, dict[str, str]] = {
    "train": {
        "demo": "demo.DemoCommand",
        "train": "train.TrainCommand",
        "finetune": "finetune.FinetuneCommand",
        "itda": "itda.ItdaCommand",
        "sweep": "sweep.SweepCommand",
    },
    "measure": {
        "eval": "evaluate.EvalCommand",
        "features": "features.FeaturesCommand",
        "probe": "probe.ProbeCommand",
        "truth": "truth.TruthCommand",
        "outliers": "outliers.OutliersCommand",
        "geography": "geography.GeographyCommand",
    },
    "analyse": {
        "compare": "compare.CompareCommand",
        "atoms": "atoms.AtomsCommand",
        "fast": "fast.FastCommand",
        "sparsity": "sparsity.SparsityCommand",
    },
    "exchange": {"harvest": "harvest.HarvestCommand", "export": "export.ExportCommand"},
    "machine": {"doctor": "doctor.DoctorCommand"},
}
