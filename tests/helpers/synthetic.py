"""Small evaluation logs with invented numbers and texts, the same rows in three formats.

Run `python -m tests.helpers.synthetic` to write tests/evaluation/logs/data anew.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import hmean

DATA = Path(__file__).resolve().parents[1] / "evaluation" / "logs" / "data"
SIZES = {"forget": 12, "retain": 9, "real_authors": 7, "world_facts": 6}
WORDS = ["river", "stone", "author", "wrote", "seven", "novels", "about"]
WORDS += ["winters", "in", "a", "harbour", "town", "near", "mountains"]
SCORER = RougeScorer(["rougeL"], use_stemmer=True)


def make_sets(seed: int, knows_forget: bool) -> dict[str, list[dict]]:
    """Rows of the four sets and of a holdout; texts and questions do not depend on the seed."""
    texts, numbers = random.Random(0), random.Random(seed)
    sets = {name: [_row(name, i, texts, numbers, knows_forget) for i in range(n)] for name, n in SIZES.items()}
    sets["holdout"] = [
        {"index": i, "nll": numbers.uniform(1, 4), "min_k": numbers.uniform(2, 6), "zlib": numbers.uniform(0.01, 0.1)}
        for i in range(8)
    ]
    return sets


def _row(name: str, index: int, texts: random.Random, numbers: random.Random, knows_forget: bool) -> dict:
    answer = " ".join(texts.choices(WORDS, k=9)) + "."
    generation = " ".join(numbers.choices(answer.split(), k=7))
    easy = name == "retain" or (name == "forget" and knows_forget)
    nll = numbers.uniform(0.01, 0.3) if easy else numbers.uniform(1, 3)
    paraphrased = name in ("forget", "retain")
    row = {
        "index": index,
        "question": f"Question {index} of {name}: what is there to say?",
        "answer": answer,
        "generation": generation,
        "nll": nll,
        "tokens": 10,
        "correct_nll": nll + numbers.uniform(0.2, 1.5) if paraphrased else nll,
        "wrong_nll": [numbers.uniform(0.5, 4) for _ in range(5 if paraphrased else 3)],
        "rouge_l_recall": SCORER.score(answer, generation)["rougeL"].recall,
    }
    if name == "forget":
        row |= {"exact_memorization": numbers.random(), "extraction_strength": numbers.random()}
        row |= {"min_k": numbers.uniform(0, 4), "zlib": numbers.uniform(0.0, 0.08)}
        row |= {"generation_nll": 0.1 + 0.05 * index, "generation_tokens": 3 + index}
    return row


def expected(sets: dict[str, list[dict]], epsilon: float = 0.0) -> dict[str, float]:
    """The aggregates, geometric truth ratio, computed with numpy alone."""
    result = {}
    for name in SIZES:
        nll = np.array([row["nll"] for row in sets[name]])
        wrong = np.array([row["wrong_nll"] for row in sets[name]])
        correct = np.array([row["correct_nll"] for row in sets[name]])
        probability = np.exp(-nll)
        if name in ("real_authors", "world_facts"):
            probability = probability / (probability + np.exp(-wrong).sum(1) + epsilon)
        ratio = np.exp(-wrong.mean(1)) / (np.exp(-correct) + epsilon)
        truth = np.minimum(ratio, 1 / ratio) if name == "forget" else np.maximum(0, 1 - ratio)
        result[f"{name}_probability"] = float(probability.mean())
        result[f"{name}_rouge"] = float(np.mean([row["rouge_l_recall"] for row in sets[name]]))
        result[f"{name}_truth_ratio"] = float(truth.mean())
    result["model_utility"] = float(hmean([value for key, value in result.items() if not key.startswith("forget")]))
    return result


def native(sets: dict[str, list[dict]], **settings: object) -> dict:
    """A log of this package, with aggregates that hold."""
    return {
        "format": "dipo-lightning/tofu/1",
        "settings": {"split": "forget01", "truth_ratio": "geometric", "prompt_style": "plain"} | settings,
        "sets": sets,
        "aggregates": expected(sets) | {"forget_quality": None, "forget_quality_absent": "no reference"},
        "skipped": {},
    }


def authors(sets: dict[str, list[dict]]) -> dict:
    """The same rows as TOFU's own code writes them."""
    keys = {
        "retain": "eval_log.json",
        "real_authors": "eval_real_author_wo_options.json",
        "world_facts": "eval_real_world_wo_options.json",
        "forget": "eval_log_forget.json",
    }
    columns = {
        "avg_gt_loss": "nll",
        "num_token_gt": "tokens",
        "avg_paraphrased_loss": "correct_nll",
        "average_perturb_loss": "wrong_nll",
        "rougeL_recall": "rouge_l_recall",
    }
    log = {}
    for name, key in keys.items():
        rows = {str(row["index"]): row for row in sets[name]}
        log[key] = {column: {i: row[source] for i, row in rows.items()} for column, source in columns.items()}
        log[key]["generated_text"] = {
            i: [f"[INST] {row['question']} [/INST]", row["generation"], row["answer"]] for i, row in rows.items()
        }
        log[key]["truth_ratio"] = {
            i: float(np.exp(row["correct_nll"] - np.mean(row["wrong_nll"]))) for i, row in rows.items()
        }
    return log


def open_unlearning(sets: dict[str, list[dict]]) -> dict:
    """The same rows as open-unlearning writes them."""
    prefixes = {"forget": "forget", "retain": "retain", "real_authors": "ra", "world_facts": "wf"}
    aggregates = expected(sets, epsilon=1e-10)
    log: dict[str, dict] = {}
    for name, prefix in prefixes.items():
        rows = {str(row["index"]): row for row in sets[name]}
        log[f"{prefix}_Q_A_Prob"] = _metric({i: _loss(row["nll"]) for i, row in rows.items()})
        if name in ("forget", "retain"):
            log[f"{prefix}_Q_A_PARA_Prob"] = _metric({i: _loss(row["correct_nll"]) for i, row in rows.items()})
        wrong = {
            i: {"prob": np.exp(-np.array(r["wrong_nll"])).tolist(), "avg_loss": r["wrong_nll"]} for i, r in rows.items()
        }
        log[f"{prefix}_Q_A_PERT_Prob"] = _metric(wrong)
        texts = {
            i: {
                "rougeL_recall": row["rouge_l_recall"],
                "input": f"system\n\nuser\n\n{row['question']}assistant\n\n",
                "ground_truth": row["answer"],
                "generation": row["generation"],
            }
            for i, row in rows.items()
        }
        log[f"{prefix}_Q_A_ROUGE"] = _metric(texts)
        ratio = {
            i: {"score": float(np.exp(-np.mean(row["wrong_nll"])) / (np.exp(-row["correct_nll"]) + 1e-10))}
            for i, row in rows.items()
        }
        key = "forget_truth_ratio" if name == "forget" else f"{prefix}_Truth_Ratio"
        log[key] = _metric(ratio, aggregates[f"{name}_truth_ratio"])
    forget, holdout = sets["forget"], sets["holdout"]
    for name in ("exact_memorization", "extraction_strength"):
        log[name] = _metric({str(row["index"]): {"score": row[name]} for row in forget})
    samples = {"forget": forget, "holdout": holdout}
    log["mia_min_k"] = {
        sample: _metric({str(row["index"]): {"score": row["min_k"]} for row in rows})
        for sample, rows in samples.items()
    } | {"auc": _pair_auc(forget, holdout), "agg_value": _pair_auc(forget, holdout)}
    log["model_utility"] = {"agg_value": aggregates["model_utility"]}
    return log


def _metric(values: dict[str, dict], aggregate: float = 0.0) -> dict:
    return {"agg_value": aggregate, "value_by_index": values}


def _loss(value: float) -> dict[str, float]:
    return {"prob": float(np.exp(-value)), "avg_loss": value}


def _pair_auc(members: list[dict], others: list[dict]) -> float:
    return float(np.mean([[m["min_k"] < o["min_k"] for o in others] for m in members]))


def main() -> None:
    """Write the logs: a model that knows the forget set, and one that does not, in each format."""
    DATA.mkdir(exist_ok=True)
    for model, seed, knows in (("target", 1, True), ("retain", 2, False)):
        sets = make_sets(seed, knows)
        for name, log in (("native", native(sets)), ("authors", authors(sets)), ("ou", open_unlearning(sets))):
            (DATA / f"{model}_{name}.json").write_text(json.dumps(log) + "\n")


if __name__ == "__main__":
    main()
