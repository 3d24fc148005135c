"""`export --push` against a faked hub: private, with a licence, and nothing beside the model."""

from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError

from dipo_lightning.cli.export import card_head, check_folder, check_push
from dipo_lightning.cli.main import main
from dipo_lightning.errors import InputError, RunError
from tests.helpers.user_run import user_run


class FakeApi:
    """The calls that are made, and the files that were uploaded."""

    calls: list
    taken = ("jane/taken",)
    licences = {"org/base": "llama3.2"}

    def repo_exists(self, name):
        return name in self.taken

    def model_info(self, name):
        return SimpleNamespace(card_data={"license": self.licences[name]} if name in self.licences else None)

    def create_repo(self, name, private, exist_ok):
        self.calls.append(("create", name, private, exist_ok))
        return f"https://hub/{name}"

    def upload_folder(self, repo_id, folder_path, commit_message):
        self.calls.append(("upload", repo_id, sorted(path.name for path in Path(folder_path).iterdir())))


@pytest.fixture
def hub(monkeypatch):
    FakeApi.calls = []
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    return FakeApi.calls


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    return str(user_run(tmp_path_factory.mktemp("run")) / "checkpoints" / "last.ckpt")


def test_an_export_is_uploaded_as_a_private_repository_with_its_licence(checkpoint, hub, tmp_path, capsys):
    options = ["--output", str(tmp_path / "out"), "--push", "jane/model", "--license", "apache-2.0"]
    assert main(["export", checkpoint, *options]) == 0
    create, upload = hub
    assert create == ("create", "jane/model", True, False)
    assert upload[2] == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert "README.md" in upload[2]
    assert card_head((tmp_path / "out/README.md").read_text())["license"] == "apache-2.0"
    assert "private repository is https://hub/jane/model" in capsys.readouterr().out


def test_without_a_network_a_sentence_says_so(monkeypatch):
    unreachable = HfHubHTTPError.__bases__[0]  # of the client that the hub's library calls with

    class Unreachable(FakeApi):
        def repo_exists(self, name):
            raise unreachable("[Errno -2] Name or service not known")

    monkeypatch.setattr(huggingface_hub, "HfApi", Unreachable)
    with pytest.raises(RunError, match=r"not known\. Check the network"):
        check_push("jane/model", "org/base", None)


def test_public_is_a_word_of_its_own(checkpoint, hub, tmp_path):
    options = ["--output", str(tmp_path / "out"), "--push", "jane/model", "--license", "mit", "--public"]
    assert main(["export", checkpoint, *options]) == 0
    assert hub[0][2] is False


@pytest.mark.parametrize(
    ("name", "base", "licence", "said"),
    [
        ("model", "org/base", None, "give OWNER/NAME"),
        ("jane/taken", "org/base", None, "would be overwritten"),
        ("jane/model", "/models/mine", None, "Give --license"),
        ("jane/model", "org/unknown", None, "Give --license"),
        ("jane/model", "org/base", "mit", "is under llama3.2"),
    ],
)
def test_what_cannot_be_right_is_refused_before_the_model_is_loaded(name, base, licence, said, hub):
    with pytest.raises(InputError, match=said):
        check_push(name, base, licence)
    assert not hub


def test_the_base_models_licence_is_kept(hub):
    assert check_push("jane/model", "org/base", None) == "llama3.2"
    assert check_push("jane/model", "org/base", "llama3.2") == "llama3.2"


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("forget.jsonl", "rows", "must not be uploaded"),
        ("evaluations/tofu.json", "{}", "must not be uploaded"),
        ("last.ckpt", "weights", "must not be uploaded"),
        ("config.json", '{"hub": "hf_abcdefghijklmnopqrstuvwxyz"}', "looks like a token"),
        ("generation_config.json", f'{{"from": "{Path.home()}/x"}}', "home folder"),
        ("README.md", "# a card without a header", "not a model card with a licence"),
    ],
)
def test_what_must_not_leave_stops_the_upload(file, text, said, tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# card")
    (tmp_path / "model.safetensors").write_text("weights")
    check_folder(tmp_path)
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        check_folder(tmp_path)
