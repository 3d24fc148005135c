"""One's own files from the command line to page, model and charts, as a user runs it."""

import json

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dipo_lightning.cli.main import main
from tests.helpers.toys import save_toy
from tests.helpers.user_run import FORGET, RETAIN


def test_from_files_to_results(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_toy(tmp_path / "model")
    for name, rows in (("forget", FORGET), ("retain", RETAIN)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    options = ["fit", "--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.max_epochs=1",
               "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
               "--trainer.callbacks+=MemorizationEvaluation", "--trainer.callbacks.measuring.max_new_tokens=4",
               "--trainer.callbacks+=ResultsPage", "--trainer.callbacks+=ExportModel",
               "--model.pretrained=model", "--data.forget=forget.jsonl",
               "--data.retain=retain.jsonl", "--data.batch_size=1"]  # fmt: skip
    for version in range(2):
        assert main(options) == 0
        run = tmp_path / "runs" / "lightning_logs" / f"version_{version}"
        assert f"The results page is {run.relative_to(tmp_path) / 'results.html'}" in capsys.readouterr().out.replace(
            f"{tmp_path}/", ""
        ), "a second run gets a folder of its own"
        page = (run / "results.html").read_text(encoding="utf-8")
        assert "ResultsPage" in page, "the configuration is on the page"
        assert "Margin of a forget row" in page
        assert "DiPOModule" in (run / "model" / "README.md").read_text(encoding="utf-8")
        events = EventAccumulator(str(run)).Reload()
        assert "config/text_summary" in events.Tags()["tensors"]
        assert {"user_data/forget_rouge", "user_data/utility", "train/margin"} <= set(events.Tags()["scalars"])
