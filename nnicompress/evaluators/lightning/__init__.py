"""The evaluator for Lightning: the user's LightningModule, data and Trainer, run on whatever model is bound."""
