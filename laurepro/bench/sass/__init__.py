"""`laurepro bench sass`: the cost of the kernels from their machine code, on GPUs that need not be there."""
