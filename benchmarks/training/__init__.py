"""pgsr-bench training: a training step beside a plain reference's."""
