"""A real GGUF file: SmolLM2-135M, where `make smollm2` has put it, or wherever DIPO_SMOLLM2 says."""

import os
from pathlib import Path

import pytest
import torch

from dipo_lightning.models.fingerprint import model_fingerprint
from dipo_lightning.models.head import LinearHead, linear_head
from dipo_lightning.models.loading import check_tokenizer, load_policy, load_tokenizer

pytestmark = pytest.mark.real_model
FOLDER = Path(os.environ.get("DIPO_SMOLLM2", Path(__file__).resolve().parents[2] / "models" / "smollm2"))


@pytest.mark.skipif(not list(FOLDER.glob("*.gguf")), reason=f"no GGUF file in {FOLDER}: make smollm2")
def test_smollm2_from_gguf_answers_trains_and_saves(tmp_path, capfd):
    model, tokenizer = load_policy(str(FOLDER)), load_tokenizer(str(FOLDER))
    assert capfd.readouterr() == ("", "")
    check_tokenizer(tokenizer, model.config)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
    assert "<|im_start|>assistant" in tokenizer.chat_template

    prompt = tokenizer("The capital of France is", return_tensors="pt")
    continuation = model.generate(**prompt, max_new_tokens=1, do_sample=False)[0, -1:]
    assert tokenizer.decode(continuation) == " Paris"

    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert linear_head(model) == LinearHead(49152, 576, tied=True)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert model_fingerprint(load_policy(str(tmp_path))) == model_fingerprint(model)
    text = "Ünïcode, 12345 and don't\n\n  spaces"
    again = load_tokenizer(str(tmp_path))
    assert again(text).input_ids == tokenizer(text).input_ids
    assert again.chat_template == tokenizer.chat_template
