"""A real GGUF file: SmolLM2-135M, where `make smollm2` has put it, or wherever DIPO_SMOLLM2 says."""

import os
from pathlib import Path

import pytest
import torch

from dipo_lightning.data.prompts import prompt_style
from dipo_lightning.models.fingerprint import model_fingerprint
from dipo_lightning.models.head import known_head
from dipo_lightning.models.loading import load_policy, load_tokenizer

pytestmark = pytest.mark.real_model
FOLDER = Path(os.environ.get("DIPO_SMOLLM2", Path(__file__).resolve().parents[2] / "models" / "smollm2"))


@pytest.mark.skipif(not list(FOLDER.glob("*.gguf")), reason=f"no GGUF file in {FOLDER}: make smollm2")
def test_smollm2_from_gguf_answers_trains_and_saves(tmp_path, capfd):
    model, tokenizer = load_policy(str(FOLDER)), load_tokenizer(str(FOLDER))
    assert capfd.readouterr() == ("", "")
    assert max(tokenizer.get_vocab().values()) < model.config.vocab_size
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
    assert "<|im_start|>assistant" in tokenizer.chat_template

    prompt = tokenizer("The capital of France is", return_tensors="pt")
    continuation = model.generate(**prompt, max_new_tokens=1, do_sample=False)[0, -1:]
    assert tokenizer.decode(continuation) == " Paris"

    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert known_head(model).linear
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert model_fingerprint(load_policy(str(tmp_path))) == model_fingerprint(model)
    text = "Ünïcode, 12345 and don't\n\n  spaces"
    again = load_tokenizer(str(tmp_path))
    assert again(text).input_ids == tokenizer(text).input_ids
    assert again.chat_template == tokenizer.chat_template


SYSTEM = [9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182]
QUESTION, ANSWER = [4150, 357, 47], [58, 81, 556, 23725, 31804, 1250, 30]
"""``system\nYou are ... Hugging Face``, `` wrote it?`` and ``Jaime Vasquez did.`` by the published tokenizer alone."""


@pytest.mark.skipif(not list(FOLDER.glob("*.gguf")), reason=f"no GGUF file in {FOLDER}: make smollm2")
@pytest.mark.parametrize(
    ("style", "prompt"),
    [
        ("chat", [1, *SYSTEM, 2, 198, 1, 4093, 198, 10576, *QUESTION, 2, 198, 1, 520, 9531, 198]),
        ("plain", [17872, 42, 6244, *QUESTION, 198, 21350, 42, 216]),
    ],
)
def test_smollm2_reads_these_very_tokens(style, prompt):
    made = prompt_style(style, load_tokenizer(str(FOLDER)))
    assert made.prompt("Who wrote it?") == prompt
    answer = [*ANSWER, 2]
    assert made.example("Who wrote it?", "Jaime Vasquez did.") == (prompt + answer, [-100] * len(prompt) + answer)
    assert made.stop_ids == [2]
