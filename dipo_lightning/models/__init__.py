"""Causal language models: where they come from, loading, their linear head, LoRA adapters."""
