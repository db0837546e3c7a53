"""What a plan will take before it is run: GPU hours, memory, budgets."""
