"""Which predictors a model gets, and one that needs no training."""
