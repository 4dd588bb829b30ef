"""A storage and a planner for LoHan, to start your own from."""
