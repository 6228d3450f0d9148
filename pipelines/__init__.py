"""Everything around the models: data, training, evaluation, the runbook. ``python -m pipelines`` is its front door."""
