"""The vocabulary as data: budget, target, recipe, measurement, artifact, report, errors. Never imports torch."""
