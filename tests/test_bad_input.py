"""Bad input gets a sentence that says what, where and what to do, exit code 2, and no traceback."""

import json
from pathlib import Path

import pytest

from dipo_lightning.cli.main import main
from tests.helpers.refused import TRAINER, assert_a_sentence, fit, write_rows
from tests.helpers.toys import save_toy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy model, good and bad files, and things that are no models."""
    root = tmp_path_factory.mktemp("bad")
    save_toy(root / "model")
    write_rows(root / "forget.jsonl", [{"question": f"Who is {i}?", "answer": f"Person {i}."} for i in range(4)])
    write_rows(root / "retain.jsonl", [{"question": f"What is {i}?", "answer": f"Thing {i}."} for i in range(6)])
    write_rows(root / "no_answer.jsonl", [{"question": "Who?", "answer": "I."}, {"question": "Who else?"}])
    write_rows(root / "number.jsonl", [{"question": "Who?", "answer": 7}])
    write_rows(root / "blank.jsonl", [{"question": "Who?", "answer": "  "}])
    write_rows(
        root / "shared.jsonl", [{"question": "What is 3?", "answer": "Thing 3."}, {"question": "Q?", "answer": "A."}]
    )
    write_rows(root / "other.jsonl", [{"ask": "Who?", "reply": "I."}])
    (root / "empty.jsonl").write_text("")
    (root / "broken.jsonl").write_text('{"question": "Who?", "answer": "I."}\n{"question": \n')
    (root / "nothing").mkdir()
    encoder = root / "encoder"
    encoder.mkdir()
    (encoder / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"]}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (encoder / name).write_text((root / "model" / name).read_text())
    pickled = root / "pickled"
    pickled.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (pickled / name).write_text((root / "model" / name).read_text())
    (pickled / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    return root


def config(folder: Path) -> dict:
    return {
        "trainer": TRAINER,
        "model": {"class_path": "dipo_lightning.DiPOModule",
                  "init_args": {"pretrained": str(folder / "model"), "reference_cache": str(folder / "cache")}},
        "data": {"class_path": "dipo_lightning.UnlearningDataModule",
                 "init_args": {"forget": str(folder / "forget.jsonl"), "retain": str(folder / "retain.jsonl"),
                               "prompt": "plain", "batch_size": 2}},
    }  # fmt: skip


CASES = {
    "a missing file": (["--data.forget={}/absent.jsonl"], "absent.jsonl"),
    "an empty file": (["--data.forget={}/empty.jsonl"], "empty"),
    "broken JSON": (["--data.forget={}/broken.jsonl"], "line 2"),
    "a row without an answer": (["--data.forget={}/no_answer.jsonl"], "line 2"),
    "an answer that is a number": (["--data.forget={}/number.jsonl"], "int"),
    "an answer of spaces": (["--data.retain={}/blank.jsonl"], "empty"),
    "unknown columns": (["--data.forget={}/other.jsonl"], "ask"),
    "a column that is not there": (["--data.columns={{question: q, answer: answer}}"], "'q'"),
    "a forget row that is also in retain": (["--data.forget={}/shared.jsonl"], "retain"),
    "a batch of nothing": (["--data.batch_size=0"], "batch_size is 0"),
    "more rows than there are": (["--data.max_forget_rows=9"], "there are 4 rows"),
    "the old name of a limit": (["--data.forget_rows=9"], "It is max_forget_rows now"),
    "a length of nothing": (["--data.max_length=0"], "max_length is 0"),
    "negative workers": (["--data.num_workers=-1"], "num_workers is -1"),
    "an unknown prompt style": (["--data.prompt=plane"], "plane"),
    "an unknown option of a prompt style": (["--data.prompt_options={{spice: prompt}}"], "did you mean 'space'"),
    "a tokenizer without a chat template": (["--data.prompt=chat", "--model.pretrained={}/no_chat"], "chat template"),
    "a tokenizer without an end of sequence": (["--model.pretrained={}/no_eos"], "no EOS token"),
    "a tokenizer of one's own that is too large": (["--data.tokenizer={}/large_tokenizer"], "row 0 holds 'Who', id"),
    "a prompt longer than the limit": (["--data.max_length=4"], "Or leave such rows out with data.on_missing: skip"),
    "a tokenizer too large for the model": (["--model.pretrained={}/large_tokenizer"], "embeddings"),
    "a model that is not there": (["--model.pretrained={}/absent/model"], "absent"),
    "a folder without a model": (["--model.pretrained={}/nothing"], "nothing"),
    "a model that is no causal LM": (["--model.pretrained={}/encoder"], "not a causal language model"),
    "pickled weights": (["--model.pretrained={}/pickled"], "safetensors"),
    "beta of 0": (["--model.beta=0"], "beta is 0"),
    "alpha below 0": (["--model.pair.alpha=-1"], "alpha is -1"),
    "p of 1": (["--model.pair.selection=top_p", "--model.pair.p=1"], "p is 1"),
    "rho of 0": (["--model.pair.selection=relative", "--model.pair.rho=0"], "rho is 0"),
    "k of 0": (["--model.pair.k=0"], "k is 0"),
    "k above the vocabulary": (["--model.pair.selection=top_k", "--model.pair.k=100000"], "vocabulary has 320 tokens"),
    "a selection that does not exist": (["--model.pair.selection=top_q"], "top_q"),
    "a negative weight": (["--model.lambda_=-1"], "lambda_ is -1"),
    "an option of another type": (["--model.beta=much"], "much"),
    "an unknown option of the model": (["--model.bata=1"], "Did you mean 'beta'?"),
    "an unknown option of the data": (["--data.batchsize=1"], "Did you mean 'batch_size'?"),
    "an unknown option of the trainer": (["--trainer.max_epoks=1"], "Did you mean 'max_epochs'?"),
    "a class that does not exist": (["--model=dipo_lightning.DIPOModul"], "DIPOModul"),
    "adapters off without adapters": (["--model.reference=adapters_off"], "model.lora.rank"),
    "the old name of an option": (["--model.lora_rank=2"], "It is model.lora.rank now"),
    "directions with a trained projection": (["--model.reference=directions"], "frozen output projection"),
    "an unknown LoRA target": (["--model.lora.rank=2", "--model.lora.targets=[q_prog]"], "q_prog"),
    "half precision weights": (["--trainer.precision=bf16-true"], "precision is bf16-true"),
    "a missing checkpoint": (["--ckpt_path={}/absent.ckpt"], "absent.ckpt"),
}  # fmt: skip


@pytest.fixture(scope="module")
def odd_tokenizers(folder: Path) -> None:
    from transformers import AutoTokenizer

    plain = AutoTokenizer.from_pretrained(folder / "model")
    for name in ("no_chat", "no_eos", "large_tokenizer"):
        save_toy(folder / name)
        tokenizer = AutoTokenizer.from_pretrained(folder / "model")
        if name == "no_chat":
            tokenizer.chat_template = None
            (folder / name / "chat_template.jinja").unlink(missing_ok=True)
        elif name == "no_eos":
            tokenizer.eos_token = None
        else:
            tokenizer.add_tokens(["<unused>", "Who"])  # a row holds the second
        tokenizer.save_pretrained(folder / name)
    assert plain.eos_token is not None


@pytest.mark.usefixtures("odd_tokenizers")
@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_a_sentence_and_exit_code_2(
    folder: Path, here: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options, said = CASES[case]
    code = fit(here, config(folder), *(option.format(folder) for option in options))
    assert_a_sentence(code, capsys.readouterr().err, said)


def test_the_good_configuration_runs(folder: Path, here: Path) -> None:
    assert fit(here, config(folder)) == 0


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scor", "log.json"]) == 2
    assert "Did you mean 'score'?" in capsys.readouterr().err
