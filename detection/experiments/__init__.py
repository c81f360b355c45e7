"""Experiments as a person names them: found in DVC, in git or in MLflow, read where they lie, brought back.

    experiment = find("lucid-oxen")                    # or a row of MLflow, a git revision, `workspace`
    experiment.files.read("reports/evaluation/metrics.json")

Importing these modules imports neither dvc (1 s) nor mlflow (4 s); using them does.
"""
