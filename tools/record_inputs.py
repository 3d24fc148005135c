"""Options of the methods, toy models and made-up data that ``record.py`` runs on."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

import dipo_lightning

Options = dict[str, Any]
Rows = list[Options]

REFERENCES = ("auto", "live", "adapters_off", "hidden_states", "directions")
WITH_REFERENCE = ("DiPO", "NPO", "KL", "UNDIAL", "RMU", "DPO", "IdkDPO")
BASES = ("LanguageModel", "Unlearning", "Selective")  # base classes, and one that needs a model which can answer
METHODS: dict[str, Options] = {
    **{
        name.removesuffix("Module"): {}
        for name in dipo_lightning.__all__
        if name.endswith("Module") and not name.endswith("DataModule") and name.removesuffix("Module") not in BASES
    },
    "RMU": {"layer": 1},
    "PDU": {"epsilon": 2.0, "dual_warmup_epochs": 1},
    "AltPO": {"per_row": 2, "max_new_tokens": 8},
    "DPO": {"data": {"alternatives": ["Nobody knows.", "I have never heard of such a writer."]}},
    "IdkDPO": {"data": {"alternatives": "idk"}},
}
SELECTIONS: list[Options] = [{"selection": "top_k", "k": 7}, {"selection": "top_p", "p": 0.6}]
SELECTIONS += [{"selection": "relative", "rho": 0.2}]
WAYS: list[Options] = [
    *({"form": form, "source": source} for form in ("logits", "hidden") for source in ("reference", "policy")),
    {"reference": "directions", "freeze_projection": True},
]
DIPO: list[Options] = [
    *(pair | way | {"memory_vector": name} for pair, way, name in product(SELECTIONS, WAYS, ("centered", "raw"))),
    *({"chunk_size": 3, "source": source} for source in ("reference", "policy")),
    *({"source": source, "trainer": {"log_every_n_steps": 4}} for source in ("reference", "policy")),
    *({"family": "gemma2", "chunk_size": 3, "form": form} for form in ("logits", "hidden")),
    {"reduction": "mean", "beta": 1.0},
    {"scale": 1, "beta": 0.1, "alpha": 0.4},
    {"retain_loss": "kl"},
    {"retain_loss": "none", "trainer": {"gradient_clip_val": 1.0}},
    {"gamma": 0.5, "lambda_": 3.0, "schedule": "linear", "warmup_steps": 3},
    {"schedule": "cosine", "activation_checkpointing": True},
    {"lora_rank": 2, "lora_alpha": 4.0, "lora_dropout": 0.3, "lora_targets": ["q_proj", "lm_head"]},
    {"data": {"prompt": "chat"}},
]
"""Options that DiPO is trained with, beside the runs of every method."""

TOWNS, TOPICS = ("Lima", "Quito", "Taipei", "Accra", "Oslo"), ("ships", "the rain", "old maps", "bread")
CHAT_TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}"
    "{% endif %}\n{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)


def method_runs() -> list[tuple[str, Options]]:
    """List the methods with their options: plain, with accumulation, with LoRA and with each reference; all of `DIPO`.

    Beside those of the module, the options are ``family`` of the model, and ``data`` and ``trainer`` with their own.
    """
    runs = [("DiPO", options) for options in DIPO]
    for name, options in METHODS.items():
        runs += [(name, options | more) for more in ({}, {"trainer": {"accumulate_grad_batches": 2}}, {"lora_rank": 2})]
    for name, reference, lora in product(WITH_REFERENCE, REFERENCES, ({}, {"lora_rank": 2})):
        runs.append((name, METHODS[name] | lora | {"reference": reference}))
    return runs


def questions(group: str, count: int, wrong: int = 0) -> Rows:
    """Make rows with a question and an answer, and with wrong answers and a paraphrase if ``wrong`` is above 0."""
    rows = []
    for i in range(count):
        who, towns, topic = f"{group} {i}", TOWNS[i % 5 :] + TOWNS[: i % 5], TOPICS[i % 4]
        answer = f"{who} lives in {towns[0]} and writes {'long ' * (i % 3)}books about {topic}."
        row: Options = {"question": f"Who is {who}?", "answer": answer}
        if wrong:
            row["paraphrased_answer"] = f"{who} lives in {towns[0]}, and writes about {topic}."
            row["perturbed_answer"] = [f"{who} paints in {town} for {towns[0]}." for town in towns[1 : wrong + 1]]
        rows.append(row)
    return rows


def texts(group: str, count: int) -> Rows:
    """Make rows of running text."""
    return [{"text": " ".join(row["answer"] for row in questions(f"{group} {i}", 3))} for i in range(count)]


def write(path: Path, rows: Rows) -> str:
    """Write rows as JSON lines and return the file's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def write_tofu(folder: Path) -> tuple[Rows, Rows]:
    """Write a data set in TOFU's schema, with a holdout set, and return its forget and its retain rows."""
    forget, retain = questions("Ada", 6, wrong=4), questions("Ben", 5, wrong=4)
    plain = [{name: row[name] for name in ("question", "answer")} for row in forget + retain]
    sets = {"forget10": plain[:6], "retain90": plain[6:], "forget10_perturbed": forget, "retain_perturbed": retain}
    sets |= {f"{name}_perturbed": questions(name, 3, wrong=3) for name in ("real_authors", "world_facts")}
    for name, rows in (sets | {"holdout10": questions("Ada", 10)[6:]}).items():
        write(folder / f"{name}.json", rows)
    return forget, retain


def write_muse(folder: Path) -> tuple[Rows, Rows]:
    """Write a corpus in MUSE's schema; return the texts that only the target has read, and those that both have."""
    forget, retain, other, unseen = texts("Ada", 4), texts("Ben", 4), texts("Cid", 4), texts("Ada", 10)[4:]
    asked = {"forget": questions("Ada 0", 14), "retain": questions("Ben 0", 14)}
    cut = [(row["text"], row["text"].index(". ") + 1) for row in forget]
    parts = {"train/forget": forget, "train/retain1": retain, "train/retain2": other}
    parts |= {"verbmem/forget": [{"prompt": text[:end], "gt": text[end:]} for text, end in cut]}
    parts |= {"privleak/forget": forget[:2] + unseen[:2], "privleak/retain": retain, "privleak/holdout": unseen[2:]}
    for side, rows in asked.items():
        parts |= {f"knowmem/{side}_qa": rows[:4], f"knowmem/{side}_qa_icl": rows[4:]}
    for name, rows in parts.items():
        write(folder / f"{name}.jsonl", rows)
    return forget + asked["forget"], retain + asked["retain"]


def user_rows() -> dict[str, Rows]:
    """Make a user's rows in every layout; some have wrong answers, and one text is too short to be measured."""
    rows = questions("Ada", 5, wrong=3)
    turns = [[("user", row["question"]), ("assistant", row["answer"])] for row in rows]
    return {
        "questions": rows + questions("Cid", 2),
        "completions": [{"prompt": row["question"], "completion": row["answer"]} for row in rows],
        "messages": [{"messages": [{"role": role, "content": said} for role, said in turn]} for turn in turns],
        "text": [*texts("Ada", 3), {"text": "a"}],
    }


def toy_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of 320 tokens, with a BOS in front and a chat template."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special, letters = ["<pad>", "<s>", "</s>"], sorted(pre_tokenizers.ByteLevel.alphabet())
    learner = trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=letters, show_progress=False)
    bpe.train_from_iterator([row["answer"] for row in questions("Somebody", 20)], learner)
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = dict(zip(("pad_token", "bos_token", "eos_token"), special, strict=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, **names, clean_up_tokenization_spaces=False)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def save_model(folder: Path, rows: Rows, family: str = "llama", seed: int = 0) -> str:
    """Save a toy model that has learnt ``rows``, with its tokenizer, and return the folder's name."""
    tokenizer = toy_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 2048, "vocab_size": 320}
    sizes |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **sizes, initializer_range=0.2, tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain = [row.get("text") or f"Question: {row['question']}\nAnswer: {row['answer']}" for row in rows]
    batch = tokenizer([text + "</s>" for text in plain], return_tensors="pt", padding=True, padding_side="right")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
