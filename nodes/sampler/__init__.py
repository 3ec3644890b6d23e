"""The samplers: inputs, plan, run, report."""
