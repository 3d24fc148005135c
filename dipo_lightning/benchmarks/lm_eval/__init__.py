"""Tasks of EleutherAI's lm-evaluation-harness on the policy in memory: MMLU, WMDP and every other task it knows."""

from dipo_lightning.benchmarks.lm_eval.metrics import LMEval

__all__ = ["LMEval"]
