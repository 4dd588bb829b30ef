"""Cutting any Hugging Face causal LM into blocks, and running one block at a time."""
