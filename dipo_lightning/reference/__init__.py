"""The frozen reference model: a live copy, the policy without its adapters, or cached states."""
