"""One experiment, one MLflow run: `train` opens it, `evaluate` completes it, `plots` adds the figures.

    with open_run(params, environment) as run:     # a server that is down gets the run when it is back
        ...                                        # write reports/train/losses.csv
        run.update(step)                           # after each checkpoint; a background thread sends the curves

Curves are written to CSV files under `reports/` first, and `uploader` brings a run up to date with them.
"""
