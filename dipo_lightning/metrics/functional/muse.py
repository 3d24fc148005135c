"""MUSE's ROUGE-L F1 in the two variants in which it is reported."""

from __future__ import annotations

from dipo_lightning.errors import InputError

MUSE_SCALES = {"muse": 100.0, "open_unlearning": 1.0}
"""What a mean ROUGE-L F1 is multiplied with."""


def muse_scale(variant: str) -> float:
    """Return the factor of a mean F1: 100 for `muse`, 1 for `open_unlearning`.

    Raises:
        InputError: The variant is unknown.
    """
    if variant not in MUSE_SCALES:
        raise InputError(f"unknown MUSE variant {variant!r}: choose one of {', '.join(MUSE_SCALES)}")
    return MUSE_SCALES[variant]


def muse_stemmer(variant: str) -> bool:
    """Tell whether the variant compares Porter stems: only `open_unlearning` does.

    Raises:
        InputError: The variant is unknown.
    """
    muse_scale(variant)
    return variant == "open_unlearning"
