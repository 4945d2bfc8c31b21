"""One training step: the recipe, the batches, the losses, the state and the update."""
