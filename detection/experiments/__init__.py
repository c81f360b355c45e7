"""Experiments by any of their names: found in DVC, git or MLflow, read, compared, restored, registered.

    experiment = find("lucid-oxen", Repository())   # or an MLflow run, a git revision, `workspace`
    experiment.files.read("reports/evaluation/metrics.json")

Importing these modules imports neither dvc (1 s) nor mlflow (4 s); using them does.
"""
