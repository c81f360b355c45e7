"""One script a stage: `python -m stages.train`. DVC runs them; so can a person, from the root folder."""
