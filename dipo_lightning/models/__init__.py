"""Causal language models: sources, loading, output head, LoRA adapters, sharding, export."""
