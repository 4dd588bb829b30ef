"""Planners that decide by offloading benefit: the paper's greedy algorithm, and the strategies it is compared with."""
