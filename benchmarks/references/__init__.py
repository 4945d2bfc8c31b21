"""The pipeline and the training step as one would first write them: what is compared with."""
