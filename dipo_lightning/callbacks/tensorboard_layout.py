"""The layout of TensorBoard's CUSTOM SCALARS tab: what belongs together, drawn in one chart."""

from typing import Any

LAYOUT: dict[str, dict[str, list[Any]]] = {
    "1 Is it forgetting, and at what price?": {
        "forget and retain terms of the loss": ["Multiline", ["^train/forget$", "^train/retain$"]],
        "margin of a forget row": ["Multiline", ["^train/margin$"]],
        "rewards of both distributions": ["Multiline", ["^train/reward_.*"]],
        "forget quality (p) against model utility": ["Multiline", ["^tofu/forget_quality_p$", "^tofu/model_utility$"]],
    },
    "2 What it still says": {
        "probability of the answers": ["Multiline", ["^(tofu|own)/(forget|retain)_probability$"]],
        "ROUGE-L recall of the answers": ["Multiline", ["^(tofu|own)/(forget|retain)_rouge$"]],
        "forget quality, log10 p (0: as if retrained)": ["Multiline", ["^(tofu|own)/forget_quality_log10_p$"]],
        "MUSE: memory of what must go and of what must stay": ["Multiline", ["^muse/(verbmem|knowmem_).*"]],
        "utility on the user's own rows": ["Multiline", ["^own/utility$", "^own/forget_exact_memorization$"]],
    },
    "3 Optimisation": {
        "whole loss": ["Multiline", ["^train/loss$"]],
        "norm of the gradient before clipping": ["Multiline", ["^train/gradient_norm$"]],
    },
}
"""Categories, their charts, and the regular expressions of the tags that each shows."""


def write_layout(experiment: Any) -> None:  # noqa: ANN401
    """Add the layout to a run; call it once a run, at the start of ``fit``.

    Args:
        experiment: A ``SummaryWriter``, or what a logger has in its place: anything else is left alone.
    """
    if hasattr(experiment, "add_custom_scalars"):
        experiment.add_custom_scalars(LAYOUT)
