"""Benchmarks: a folder each, with its data, its data module, its callback and its numbers behind one contract.

The contract is `Benchmark`. A folder here is found automatically; a benchmark of your own needs no registration, since
an evaluation's log names its class.
"""

from dipo_lightning.evaluation.benchmark import (
    PROBABILITY_CHART,
    ROUGE_CHART,
    Benchmark,
    Chart,
    ForeignFormat,
    Headline,
)

__all__ = ["PROBABILITY_CHART", "ROUGE_CHART", "Benchmark", "Chart", "ForeignFormat", "Headline"]
