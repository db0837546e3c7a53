"""How a training step is computed: batches, losses, precision, the optimiser."""
