"""Planners side by side: each one's plan predicted, and carried out on the same data."""
