"""What each number means, in plain words."""

from __future__ import annotations

from typing import NamedTuple


class Meaning(NamedTuple):
    """A number's name for a reader, what it says, and which way is the wanted one."""

    label: str
    words: str
    wanted: str = ""


_SETS = {
    "forget": "what must be forgotten",
    "retain": "what must be kept",
    "real_authors": "questions about real authors",
    "world_facts": "questions about the world",
    "holdout": "rows the model never saw",
}
_PARTS = {
    "probability": Meaning(
        "probability",
        "How likely the model finds the true answer: the geometric mean over its tokens (for multiple choice, its "
        "share among the options). 1 is certain.",
    ),
    "rouge": Meaning(
        "ROUGE-L recall",
        "Share of the true answer's words that the model's own answer holds, in their order. 1 is word for word.",
    ),
    "truth_ratio": Meaning(
        "truth ratio",
        "Compares wrong answers with the right one in other words. For what must be forgotten, 1 means that both are "
        "equally likely, as if never learnt; for what must be kept, 1 means that the right one is far likelier.",
    ),
    "exact_memorization": Meaning(
        "exact memorisation", "Share of the answer's tokens that are the model's first choice, given those before."
    ),
    "extraction_strength": Meaning(
        "extraction strength",
        "Share of the answer that the model completes without a fault once it is given the rest. 0: nothing can be "
        "drawn out; 1: all of it, from the question alone.",
    ),
    "fluency": Meaning(
        "fluency",
        "How varied the words of the model's own answers are: the entropy of their word pairs and triples, in bits. "
        "Far below what it was, the model repeats itself. Longer answers have more.",
    ),
    "perplexity": Meaning(
        "perplexity of its own answers",
        "How many tokens the model wavers between while it answers. 1 is certain; far above what it was, the words do "
        "not belong together.",
    ),
    "min_k": Meaning(
        "Min-K", "Mean surprise (nats) at the least expected tokens of the answer. Low for a text that was learnt."
    ),
    "min_k_plus_plus": Meaning(
        "Min-K++", "Min-K, measured against how surprised the model usually is there. Low for a text that was learnt."
    ),
}
_NAMES = {
    "forget_quality_p": Meaning(
        "forget quality (p)",
        "A statistical test against a model that never saw what must be forgotten: the chance of a difference as large "
        "as this one if both behaved alike. Below 0.05 the two can be told apart. 1 is the best possible.",
        "up",
    ),
    "forget_quality_log10_p": Meaning("forget quality, log10 p", "The same on a scale that shows small values.", "up"),
    "forget_quality_d": Meaning(
        "forget quality, distance", "The largest gap between the two distributions that the test compares.", "down"
    ),
    "forget_quality_n": Meaning("rows in that test", "How many forget rows both models were measured on."),
    "model_utility": Meaning(
        "model utility",
        "What the model can still do: harmonic mean of probability, ROUGE and truth ratio on what must be kept, real "
        "authors and world facts. One bad part pulls it down.",
        "up",
    ),
    "utility": Meaning(
        "utility",
        "What the model can still do on your retain rows: harmonic mean of their probability, ROUGE and (where it was "
        "measured) truth ratio.",
        "up",
    ),
    "verbmem": Meaning(
        "verbatim memory",
        "ROUGE-L F1 between the text to forget and the model's continuation of its beginning.",
        "down",
    ),
    "knowmem_forget": Meaning(
        "knowledge of what must go", "ROUGE-L of the answers to questions about the text to forget.", "down"
    ),
    "knowmem_retain": Meaning(
        "knowledge of what must stay", "ROUGE-L of the answers to questions about the text to keep.", "up"
    ),
    "privleak": Meaning(
        "privacy leak",
        "Whether an attacker can tell the forgotten texts from texts never seen, compared with a retain model, in "
        "percent. 0 is best; far below: not forgotten; far above: forgotten so hard that it shows.",
    ),
    "privleak_auc": Meaning("privacy leak, AUC", "How well the attack tells the two apart: 0.5 is not at all."),
    "privleak_auc_retrain": Meaning("the same of a retain model", "What the privacy leak is compared with."),
}


def meaning(name: str) -> Meaning:
    """Return what a scalar of an evaluation means; an unknown one has its name and no words."""
    if name in _NAMES:
        return _NAMES[name]
    for prefix, whose in _SETS.items():
        part = name.removeprefix(f"{prefix}_")
        if part == name:
            continue
        if part in _PARTS:
            label, words, _ = _PARTS[part]
            return Meaning(f"{prefix.replace('_', ' ')}: {label}", f"On {whose}. {words}", _wanted(prefix, part))
        if part.endswith("_auc"):
            attack = part.removesuffix("_auc").replace("_", " ")
            return Meaning(
                f"membership attack by {attack}, AUC",
                "How well this score tells forgotten rows from rows the model never saw. 1: members are recognised; "
                "0.5: not at all.",
            )
    return Meaning(name.replace("_", " "), "")


def _wanted(set_name: str, part: str) -> str:
    """Which way a number of a set should go; Min-K counts surprise, which should rise where forgetting is wanted."""
    if set_name == "holdout":
        return ""
    if part in ("fluency", "perplexity"):
        return "up" if part == "fluency" else "down"
    more_memory = part not in ("min_k", "min_k_plus_plus")
    if set_name == "forget":
        return "up" if not more_memory or part == "truth_ratio" else "down"
    return "up" if more_memory else "down"
