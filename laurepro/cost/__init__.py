"""What a plan will take: device-hours, finish time, memory, disk, budgets."""
