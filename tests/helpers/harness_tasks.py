"""Tasks of the lm-evaluation-harness that are read from a folder: offline, and of every kind of request."""

import json
from pathlib import Path

import yaml

DOCUMENTS = [
    {"question": f"Where was author {i} born?", "choices": ["in the city", "a teacher", "of fiction"], "answer": i % 3}
    for i in range(7)
]


def write_tasks(folder: Path) -> Path:
    """Two multiple-choice tasks in a group ``toy``, ``toy_says`` that generates, ``toy_texts`` that scores texts."""
    folder.mkdir(parents=True, exist_ok=True)
    accuracy = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
    for name, rows in (("few", DOCUMENTS[:2]), ("more", DOCUMENTS[2:])):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        task = {
            "task": f"toy_{name}",
            "dataset_path": "json",
            "dataset_kwargs": {
                "data_files": {"test": str(folder / f"{name}.jsonl")},
                "cache_dir": str(folder / "cache"),
            },
            "test_split": "test",
            "doc_to_text": "Question: {{question}}\nAnswer:",
            "metadata": {"version": 1},
        }
        choice = {
            "output_type": "multiple_choice",
            "doc_to_target": "answer",
            "doc_to_choice": "choices",
            "metric_list": [accuracy],
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task | choice))
    generating = {
        "task": "toy_says",
        "output_type": "generate_until",
        "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "says.yaml").write_text(yaml.safe_dump(task | generating))
    texts = {
        "task": "toy_texts",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}}",
        "metric_list": [{"metric": "word_perplexity"}],
    }
    (folder / "texts.yaml").write_text(yaml.safe_dump(task | texts))
    group = {
        "group": "toy",
        "task": ["toy_few", "toy_more"],
        "aggregate_metric_list": [{"metric": "acc", "aggregation": "mean", "weight_by_size": True}],
    }
    (folder / "group.yaml").write_text(yaml.safe_dump(group))
    return folder
