"""TensorRT engines: how they are built, and the sidecars that say what each depends on."""
