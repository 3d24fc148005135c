"""Export of a checkpoint to a Hugging Face folder: the same weights, a card with the facts, and nothing private."""

import json
import re
from pathlib import Path

import pytest
import torch

from dipo_lightning.cli.main import main
from dipo_lightning.errors import InputError
from dipo_lightning.models.checkpoint import read_checkpoint, restore
from dipo_lightning.models.loading import load_policy, load_tokenizer
from dipo_lightning.models.lora import LoRA
from dipo_lightning.safety.redaction import without_paths, without_secrets
from tests.helpers.toys import save_toy, toy_tokenizer
from tests.helpers.user_run import user_run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return user_run(tmp_path_factory.mktemp("full"))


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory) -> Path:
    return user_run(tmp_path_factory.mktemp("lora"), lora=LoRA(2))


def checkpoint(run: Path) -> Path:
    return run / "checkpoints" / "last.ckpt"


def logits(folder: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 20)[None]).logits


@pytest.mark.parametrize("kind", ["run", "lora_run"])
def test_the_folder_is_the_model_that_was_trained(kind, request, tmp_path):
    run = request.getfixturevalue(kind)
    assert main(["export", str(checkpoint(run)), "--output", str(tmp_path / "out")]) == 0
    torch.testing.assert_close(logits(tmp_path / "out"), logits(run / "model"), rtol=0, atol=0)
    assert not torch.equal(logits(run / "model"), logits(run.parents[1] / "home/jane/original"))
    files = {path.name for path in (tmp_path / "out").iterdir()}
    wanted = {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "README.md"}
    assert files >= wanted


def test_adapters_stay_separate_where_asked(lora_run, run, tmp_path, capsys):
    assert main(["export", str(checkpoint(lora_run)), "--output", str(tmp_path / "out"), "--adapters", "separate"]) == 0
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json"} <= files
    assert "model.safetensors" not in files
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(lora_run.parents[1] / "home/jane/original")
    model = PeftModel.from_pretrained(base, tmp_path / "out").eval()
    with torch.no_grad():
        found = model(input_ids=torch.arange(3, 20)[None]).logits
    torch.testing.assert_close(found, logits(lora_run / "model"), rtol=1e-5, atol=1e-5)
    assert "library_name: peft" in (tmp_path / "out" / "README.md").read_text()
    assert main(["export", str(checkpoint(run)), "--output", str(tmp_path / "no"), "--adapters", "separate"]) == 2
    assert "holds no adapters" in capsys.readouterr().err


def test_a_licence_without_an_upload_stands_in_the_card(run, tmp_path, capsys):
    line = ["export", str(checkpoint(run)), "--output", str(tmp_path / "out")]
    assert main([*line, "--public"]) == 2
    assert "give --push its name, or leave --public out" in capsys.readouterr().err
    assert main([*line, "--license", "mit"]) == 0
    assert "\nlicense: mit\n" in (tmp_path / "out" / "README.md").read_text()


def test_a_file_that_is_no_checkpoint_is_named_as_such(run, tmp_path, capsys):
    assert main(["export", str(run / "model" / "config.json"), "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "config.json cannot be read as a checkpoint: it is another kind of file, or cut off. Give a .ckpt" in said
    assert "torch.save" not in said


@pytest.mark.parametrize("by", ["command", "callback"])
def test_the_card_states_the_facts_and_nothing_private(run, tmp_path, by):
    if by == "command":
        main(["export", str(checkpoint(run)), "--output", str(tmp_path / "out")])
    card = ((tmp_path / "out" if by == "command" else run / "model") / "README.md").read_text(encoding="utf-8")
    [last] = run.glob("evaluations/*step=00006.json")
    document = json.loads(last.read_text())
    assert document["provenance"]["data"]["forget"]["sha256"] in card
    assert f"| {document['aggregates']['forget_probability']:.4g} |" in card
    assert "before at step 0, after at step 6." in card
    assert "`original` after unlearning" in card
    assert "| retain\\_loss | `nll` |" in card
    if by == "callback":
        assert "**GradDiffModule**" in card
    assert not re.search(r"[/\\](tmp|home|root|Users)[/\\]|jane", card)
    assert str(run.parents[1]) not in card
    import yaml

    header = yaml.safe_load(card.split("---")[1])
    assert header["library_name"] == "transformers"
    assert "machine-unlearning" in header["tags"]


def test_the_card_of_a_fine_tuned_model_says_nothing_of_unlearning(tmp_path):
    from dipo_lightning import FineTuningModule, GradDiffModule
    from dipo_lightning.report.card import CardFacts, model_card

    original = str(save_toy(tmp_path / "original"))
    rows = {"rows": 3, "sha256": "0" * 64}
    for module, part, unlearned in ((FineTuningModule, "train", False), (GradDiffModule, "forget", True)):
        for data in ({}, {part: rows}):
            made = module(original)
            card = model_card(CardFacts("m", "org/base", module.__name__, settings=dict(made.hparams), data=data))
            assert (f"after training with **{module.__name__}** of" in card) == (not unlearned)
            assert ("after unlearning with" in card) == ("- machine-unlearning" in card) == unlearned
            assert ("no proof of erasure" in card) == unlearned


def test_a_card_has_no_results_of_later_steps(run, tmp_path):
    from dipo_lightning.report.card import CardFacts, model_card

    card = model_card(CardFacts("m", "org/base", "DiPOModule", run=run, step=4))
    assert "after at step 3 (the weights are those of step 4)" in card
    assert "base_model: org/base" in card
    assert "No evaluation was made of these weights." in model_card(CardFacts("m", "b", "DiPOModule"))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")  # what writes it here
def test_a_sharded_checkpoint_is_read(run, tmp_path):
    """In the layout of Lightning's ModelParallelStrategy, as torch writes it: shards, and the rest beside them."""
    import torch.distributed.checkpoint as dcp

    content = torch.load(checkpoint(run), weights_only=True)
    state = content.pop("state_dict")
    optimizer = {"state": {"policy.lm_head.weight": {"momentum": torch.zeros(2)}}}
    folder = tmp_path / "sharded.ckpt"
    dcp.save({"state_dict": state, "optimizer_0": optimizer}, checkpoint_id=folder, no_dist=True)
    torch.save(content, folder / "meta.pt")
    found = read_checkpoint(folder)
    assert found.step == 6
    assert found.weights.keys() == {name.removeprefix("policy.") for name in state}
    for name, value in found.weights.items():
        torch.testing.assert_close(value, state[f"policy.{name}"], rtol=0, atol=0)
    policy, _ = restore(found)
    assert not policy.training


def test_bad_checkpoints_are_refused_in_a_sentence(run, tmp_path):
    with pytest.raises(InputError, match="no such checkpoint"):
        read_checkpoint(tmp_path / "absent.ckpt")
    with pytest.raises(InputError, match="no sharded checkpoint"):
        read_checkpoint(tmp_path)
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(checkpoint(run).read_bytes()[:1000])
    with pytest.raises(InputError, match=r"broken\.ckpt cannot be read"):
        read_checkpoint(broken)
    torch.save({"state_dict": {"layer.weight": torch.ones(1)}}, broken)
    with pytest.raises(InputError, match="not a checkpoint of a module of this package"):
        read_checkpoint(broken)


class Trap:
    """An object whose unpickling would run code."""

    def __reduce__(self):
        return print, ("run",)


def test_code_in_a_checkpoint_is_not_run(tmp_path, capsys):
    torch.save({"hyper_parameters": {"pretrained": Trap()}}, tmp_path / "trap.ckpt")
    with pytest.raises(InputError, match="more than tensors and plain values"):
        read_checkpoint(tmp_path / "trap.ckpt")
    assert "run" not in capsys.readouterr().out


def test_model_and_tokenizer_come_in_the_run_s_revision(run, monkeypatch):
    asked = []

    def load(kind):
        return lambda source, **options: asked.append((kind, source, options)) or kind(source)

    monkeypatch.setattr("dipo_lightning.models.checkpoint.load_policy", load(load_policy))
    monkeypatch.setattr("dipo_lightning.models.checkpoint.load_tokenizer", load(load_tokenizer))
    found = read_checkpoint(checkpoint(run))
    found.settings["revision"] = "v2"
    restore(found, trust_remote_code=True)
    where = {"revision": "v2", "trust_remote_code": True}
    assert [(source, options) for _, source, options in asked] == [(found.settings["pretrained"], where)] * 2


def test_the_tokenizer_that_was_trained_with_is_exported(run, tmp_path):
    other = toy_tokenizer()
    other.add_tokens(["[ODD]"])
    other.save_pretrained(tmp_path / "other")
    found = read_checkpoint(checkpoint(run))
    assert "[ODD]" not in restore(found)[1].get_vocab()
    found.tokenizer = str(tmp_path / "other")
    assert "[ODD]" in restore(found)[1].get_vocab()


@pytest.mark.parametrize("kind", ["run", "lora_run"])
def test_embeddings_that_the_module_has_resized_are_exported(kind, request):
    found = read_checkpoint(checkpoint(request.getfixturevalue(kind)))
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        before = restore(found)[0](input_ids=ids).logits
        for name, value in found.weights.items():
            if name.endswith(("embed_tokens.weight", "lm_head.weight")):
                found.weights[name] = torch.cat([value, torch.ones(3, value.shape[1])])
        policy, _ = restore(found)
        after = policy(input_ids=ids).logits
    assert after.shape[-1] == policy.config.vocab_size == before.shape[-1] + 3
    torch.testing.assert_close(after[..., :-3], before, rtol=0, atol=0)


def test_an_unknown_setting_of_the_adapters_is_named(lora_run):
    found = read_checkpoint(checkpoint(lora_run))
    found.settings["lora"] = found.settings["lora"] | {"width": 3}
    with pytest.raises(InputError, match=r"model\.lora has no option width"):
        restore(found)


def test_an_original_that_moved_or_is_another(run, tmp_path, capsys):
    content = torch.load(checkpoint(run), weights_only=True)
    content["hyper_parameters"]["pretrained"] = str(tmp_path / "gone")
    torch.save(content, tmp_path / "moved.ckpt")
    assert main(["export", str(tmp_path / "moved.ckpt")]) == 2
    assert "--pretrained" in capsys.readouterr().err
    original = run.parents[1] / "home/jane/original"
    assert main(["export", str(tmp_path / "moved.ckpt"), "--pretrained", str(original)]) == 0
    assert (tmp_path / "moved-model" / "README.md").is_file(), "without --output it lies beside the checkpoint"
    assert main(["export", str(tmp_path / "moved.ckpt"), "--pretrained", str(original)]) == 2
    assert "not empty" in capsys.readouterr().err
    wide = save_toy(tmp_path / "wide", intermediate_size=48)
    with pytest.raises(InputError, match="do not fit"):
        restore(read_checkpoint(tmp_path / "moved.ckpt"), str(wide))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/home/Jane Doe/models/llama", "llama"),
        ("~/models/llama/", "llama"),
        (r"C:\Users\jane\llama", "llama"),
        ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B"),
        ("2/beta", "2/beta"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("see /home/jane/x.json, and ./runs/y", "see x.json, and ./runs/y"),
        ({"a": ["/root/b", 1]}, {"a": ["b", 1]}),
    ],
)
def test_paths_are_shortened(value, shown):
    assert without_paths(value) == shown


def test_secrets_are_removed():
    values = {"token": "abc", "hub_token": "x", "eos_token_id": 2, "max_new_tokens": 8, "url": "https://u:pw@host/",
              "note": "hf_" + "a" * 34, "nested": [{"password": "p"}], "tokenizer": "org/name"}  # fmt: skip
    found = without_secrets(values)
    assert found["token"] == found["hub_token"] == found["note"] == found["nested"][0]["password"] == "(removed)"
    assert "pw" not in found["url"]
    assert (found["eos_token_id"], found["max_new_tokens"], found["tokenizer"]) == (2, 8, "org/name")
