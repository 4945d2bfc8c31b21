"""A billion faces on many nodes: a cost model and a discrete-event simulation, checked against real runs."""
