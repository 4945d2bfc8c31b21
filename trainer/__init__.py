"""Training: recipes, data, schedule, objectives and the loop. PyTorch lives here."""
