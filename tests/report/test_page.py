"""The results page: everything in it, everything escaped, nothing from elsewhere, and a real browser shows it."""

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from dipo_lightning.cli.main import main
from dipo_lightning.comparison.results import read_evaluations
from dipo_lightning.errors import InputError, RunError
from dipo_lightning.evaluation.aggregates import document_meanings
from dipo_lightning.evaluation.benchmark import installed_benchmarks
from dipo_lightning.evaluation.logs import last_evaluation
from dipo_lightning.metrics import Meaning
from dipo_lightning.report.card import CardFacts, model_card
from dipo_lightning.report.charts import evaluation_charts
from dipo_lightning.report.page import PAGE, alike, write_page
from dipo_lightning.report.runs import read_run
from dipo_lightning.safety.redaction import without_secrets_in_yaml
from tests.helpers.user_run import user_run

HOSTILE = "</td><script>alert('x')</script><img src=x onerror=alert(1)> \x1b[31m\x00\u202e & \"quoted\" {{ 7*7 }}"


class Page(HTMLParser):
    """Collects tags with their attributes, and the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def named(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


def document(step, generation, forget_rouge=0.5, **aggregates):
    row = {"index": 0, "question": "Who?", "answer": "Ann.", "generation": generation, "rouge_l_recall": forget_rouge}
    return {
        "format": "dipo-lightning/user_data/1",
        "settings": {"max_new_tokens": 8},
        "provenance": {"step": step, "method": "DiPOModule", "seed": 0},
        "sets": {"forget": [row]},
        "aggregates": {"forget_rouge": forget_rouge, **aggregates},
        "skipped": {},
    }


def write_run(folder, *documents):
    (folder / "evaluations").mkdir(parents=True)
    for one in documents:
        file = folder / "evaluations" / f"user_data_epoch=000_step={one['provenance']['step']:05d}.json"
        file.write_text(json.dumps(one), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return user_run(tmp_path_factory.mktemp("run"))


def test_a_run_writes_its_page(run, capsys):
    page = Page((run / PAGE).read_text(encoding="utf-8"))
    images = page.named("img")
    assert len(images) >= 4
    assert all(image["src"].startswith("data:image/svg+xml;base64,") and image["alt"] for image in images)
    for text in ("run/first", "ROUGE-L recall on what must be forgotten", "extraction strength", "SHA-256",
                 "What must be forgotten", "max_new_tokens", "GradDiffModule",
                 "The two terms of the loss", "no proof of erasure"):  # fmt: skip
        assert text in page.text, text
    assert not page.named("script")
    assert "alert(1)" in page.text
    assert "\x1b" not in page.text
    assert "\\u001b[31mteacher" in page.text
    again = run / "again.html"
    assert main(["report", str(run.parent), "--output", str(again)]) == 0
    assert str(again) in capsys.readouterr().out
    assert again.read_text() == (run / PAGE).read_text()


def test_nothing_comes_from_elsewhere(run):
    text = (run / PAGE).read_text(encoding="utf-8")
    page = Page(text)
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", text)
    assert "url(" not in text
    assert "@import" not in text
    policy = [meta["content"] for meta in page.named("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_hostile_texts_are_shown_and_not_run(tmp_path):
    one = document(0, HOSTILE)
    one["settings"]["data"] = one["provenance"]["pretrained"] = HOSTILE
    one["sets"]["forget"][0] |= {"question": HOSTILE, "answer": HOSTILE}
    one["sets"][HOSTILE] = [{"index": 0, "prompt": HOSTILE, "generation": HOSTILE}]
    one["aggregates"][HOSTILE] = 1.0
    one["aggregates"]["utility_absent"] = HOSTILE
    folder = write_run(tmp_path / "<b>run</b>", one)
    (folder / "config.yaml").write_text(HOSTILE, encoding="utf-8")
    page = Page(write_page(folder).read_text(encoding="utf-8"))
    assert not page.named("script")
    assert not page.named("img")
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text.count("<script>alert('x')</script>") >= 8
    assert "{{ 7*7 }}" in page.text
    assert not set("\x00\x1b\u202e") & set(page.text)


def test_what_changed_is_marked_word_by_word(tmp_path):
    folder = write_run(tmp_path / "run", document(0, "Ann wrote it.", 0.9), document(4, "Bo wrote it.", 0.1))
    text = write_page(folder).read_text(encoding="utf-8")
    assert "<del>Ann</del> wrote it." in text
    assert "<ins>Bo</ins> wrote it." in text
    assert "1 of 1 answers changed" in text
    assert '<span class="was">0.900</span>' in text, "as many digits before as after"
    assert '<span class="">0.100</span>' in text, "how little a model that never knew would say is unknown"
    worse = write_run(tmp_path / "worse", document(0, "Ann wrote it.", 0.5), document(4, "Bo wrote it.", 0.9))
    assert '<span class="bad">0.900</span>' in write_page(worse).read_text(encoding="utf-8")
    assert "Before is step 0, after is step 4" in text


def test_other_models_in_the_folder_are_no_state_before(tmp_path):
    for number, (pretrained, said) in enumerate((("a", "Cy."), ("b", "Bo.")), 1):
        one = document(0, said, 0.9 / number)
        one["provenance"]["pretrained"] = pretrained
        file = tmp_path / "evaluations" / f"user_data_epoch=000_step=00000_test_{number}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(one))
    text = write_page(tmp_path).read_text(encoding="utf-8")
    assert "One evaluation, at step 0: there is nothing to compare it with." in text
    assert "Cy." not in text
    results = model_card(CardFacts("name", "base", "DiPOModule", run=tmp_path)).partition("## Measured results")[2]
    assert "`user_data`: at step 0." in results
    assert "0.45" in results
    assert "0.9" not in results


def test_a_small_loss_is_not_blamed(tmp_path):
    folder = write_run(tmp_path / "run", document(0, "Ann.", utility=0.919), document(4, "Bo.", utility=0.910))
    text = write_page(folder).read_text(encoding="utf-8")
    assert '<span class="">0.910</span>' in text
    assert 'class="bad"' not in text
    worse = write_run(tmp_path / "worse", document(0, "Ann.", utility=0.919), document(4, "Bo.", utility=0.7))
    assert '<span class="bad">0.700</span>' in write_page(worse).read_text(encoding="utf-8")


def test_the_retain_model_stands_beside(tmp_path):
    log = {"nll": 1.0, "rouge_l_recall": 0.4, "index": 0, "question": "Who?", "answer": "Ann.", "generation": "Cy."}
    retain = document(0, "Cy.", 0.4)
    retain |= {"sets": {"forget": [log], "retain": [log]}}
    (tmp_path / "retain.json").write_text(json.dumps(retain), encoding="utf-8")
    documents = [document(0, "Ann.", 0.9), document(4, "Bo.", 0.3)]
    for one in documents:
        one["settings"]["retain_log"] = str(tmp_path / "retain.json")
    folder = write_run(tmp_path / "run", *documents)
    page = Page(write_page(folder).read_text(encoding="utf-8"))
    assert "retain model 0.400" in page.text
    assert "Cy." in page.text
    (tmp_path / "retain.json").unlink()
    assert "Cy." not in Page(write_page(folder).read_text(encoding="utf-8")).text


def test_the_retain_model_is_measured_on_the_same_benchmark(tmp_path):
    row = {"nll": 1.0, "index": 0, "rouge_l_recall": 0.4}
    retain = document(0, "Cy.") | {"sets": {"forget": [row], "retain": [row]}}
    folder = write_run(tmp_path / "retain", retain)
    other = retain | {"format": "dipo-lightning/tofu/1"}
    (folder / "evaluations/tofu_epoch=000_step=00000.json").write_text(json.dumps(other), encoding="utf-8")
    measured = document(4, "Bo.", 0.3, forget_probability=0.2)
    measured["settings"]["retain_log"] = str(folder)
    page = Page(write_page(write_run(tmp_path / "run", measured)).read_text(encoding="utf-8"))
    assert "retain model 0.400" in page.text


@pytest.mark.parametrize(
    ("value", "among", "shown"),
    [(0.91, [0.919, 0.91], "0.910"), (1e-12, [1e-12, 0.8], "1.0e-12"), (64.0, [64.0, 64.0], "64"),
     (-0.07, [-11.94, -0.07], "-0.07"), (1.0, [1.0, 0.5], "1.000"), (0.0, [0.0, 0.5], "0.000")],
)  # fmt: skip
def test_compared_numbers_have_equal_digits(value, among, shown):
    assert alike(value, among) == shown


def test_options_left_at_nothing_are_left_out(tmp_path):
    folder = write_run(tmp_path / "run", document(0, "Ann."))
    (folder / "config.yaml").write_text("trainer: {max_epochs: 3, max_time: null}\n", encoding="utf-8")
    page = Page(write_page(folder).read_text(encoding="utf-8"))
    assert "max_epochs: 3" in page.text
    assert "max_time" not in page.text


def test_one_evaluation_compares_nothing(tmp_path):
    text = write_page(write_run(tmp_path / "run", document(3, "Ann."))).read_text(encoding="utf-8")
    assert "there is nothing to compare it with" in text
    assert "<ins>" not in text
    assert "<del>" not in text


def test_rows_are_limited(tmp_path):
    one = document(0, "Ann.")
    one["sets"]["forget"] = [{**one["sets"]["forget"][0], "index": i} for i in range(5)]
    folder = write_run(tmp_path / "run", one)
    assert write_page(folder, rows=2).read_text().count("<article") == 2
    with pytest.raises(InputError, match="rows is -1"):
        write_page(folder, rows=-1)


def test_secrets_are_taken_out_of_the_configuration():
    text = "logger:\n  api_key: abc123\n  hub: hf_" + "x" * 30 + "\n  pad_token_id: 0\n  max_new_tokens: 8\n"
    for written in (text, text + "name: a: b"):  # whole, and broken
        shown = without_secrets_in_yaml(written).splitlines()
        assert shown[1:5] == ["  api_key: (removed)", "  hub: (removed)", "  pad_token_id: 0", "  max_new_tokens: 8"]


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        read_run(tmp_path / "absent")
    with pytest.raises(InputError, match="evaluation callback"):
        read_run(tmp_path)
    for name in ("verdict.json", "sources.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "run").mkdir()
    for place in (tmp_path, tmp_path / "run"):
        with pytest.raises(InputError, match=rf"is a run of forget.*{tmp_path}/results\.html"):
            read_run(place)
        with pytest.raises(InputError, match=r"is a run of forget"):
            last_evaluation(place)
        with pytest.raises(InputError, match=r"is a run of forget"):
            read_evaluations(place)
    (tmp_path / "verdict.json").rename(tmp_path / "scores.json")
    for place in (tmp_path, tmp_path / "run"):
        with pytest.raises(InputError, match=rf"{tmp_path} was cleaned"):
            read_run(place)
        with pytest.raises(InputError, match=rf"{tmp_path} was cleaned"):
            last_evaluation(place)
    for name in ("one", "two"):
        write_run(tmp_path / name, document(0, "Ann."))
    with pytest.raises(InputError, match=r"holds 2 runs.*one.*two"):
        read_run(tmp_path)
    (tmp_path / "one" / "evaluations" / "user_data_epoch=1.json").write_text("{")
    with pytest.raises(InputError, match=r"user_data_epoch=1\.json: not an evaluation"):
        read_run(tmp_path / "one")
    (tmp_path / "one" / "evaluations" / "user_data_epoch=1.json").write_text("{}")
    with pytest.raises(InputError, match="not an evaluation of this package"):
        read_run(tmp_path / "one")
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(RunError, match="could not be written"):
        write_page(tmp_path / "two", blocked / "page.html")


def test_every_number_has_plain_words():
    known = {one.name: document_meanings({"format": one.format, "settings": {}}) for one in installed_benchmarks()}
    for benchmark in installed_benchmarks():
        if benchmark.name == "robustness":  # its numbers depend on what was attacked
            continue
        found = known[benchmark.name]
        assert all(found[name].words for name in found if not name.endswith("forget_quality"))
        charted = {name for chart in benchmark.charts for name in chart.curves}
        pair = (benchmark.headline.forget, benchmark.headline.utility, *benchmark.headline.beside)
        assert {*benchmark.shown, *benchmark.hyperparameter_metrics, *charted, *pair} - {""} <= set(found)
    own = known["user_data"]
    assert own["retain_rouge"].higher_is_better is True
    assert (own["forget_rouge"].higher_is_better, own["forget_rouge"].floor) == (False, True)
    assert own["forget_min_k"].higher_is_better is True, "Min-K counts surprise"
    assert own["forget_truth_ratio"].higher_is_better is True
    assert known["muse"]["privleak"].better(-3.0, 5.0) is True, "near 0 is best"
    assert own["my_number"] == Meaning("my number")


@pytest.mark.slow
def test_a_browser_shows_it(run, tmp_path):
    """Chromium renders the page without a complaint, with every image drawn and no script run."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update", "--hide-scrollbars")  # fmt: skip
    picture = tmp_path / "page.png"
    command = [browser, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,2000",
               "--enable-logging=stderr", f"--screenshot={picture}", "--dump-dom", (run / PAGE).as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr, "the page's own policy or markup was refused"
    assert 'alt="The two terms of the loss"' in done.stdout
    assert picture.stat().st_size > 30_000
    from matplotlib.image import imread

    pixels = imread(picture)[..., :3]
    blue = abs(pixels - [0.0, 0.447, 0.698]).sum(axis=-1) < 0.1  # the curves' second colour, inside an SVG image
    assert blue.sum() > 100


def test_a_number_has_its_unit_on_the_page_and_on_the_card(tmp_path):
    run = write_run(tmp_path, document(0, "Ann.", forget_min_k=0.5), document(3, "Bob.", forget_min_k=1.5))
    assert "Min-K on what must be forgotten (nats)" in Page(write_page(run).read_text(encoding="utf-8")).text
    card = model_card(CardFacts("mine", "base", "NPOModule", run=run))
    assert "| forget: Min-K (nats) | 0.5 | 1.5 |" in card
    assert "| forget: ROUGE-L recall | 0.5 | 0.5 |" in card


def test_charts_have_words_and_unit_of_their_metrics():
    muse, own = (next(one for one in installed_benchmarks() if one.name == name) for name in ("muse", "user_data"))
    documents = [{"format": muse.format, "settings": {}, "provenance": {"step": step}} for step in (0, 4)]
    scalars = [{"verbmem": 99.0, "forget_rouge": 0.9}, {"verbmem": 20.0, "forget_rouge": 0.2}]
    [chart] = evaluation_charts(documents, scalars, muse, {})
    assert ">%</text>" in base64.b64decode(chart.image.partition(",")[2]).decode()
    [chart] = evaluation_charts([one | {"format": own.format} for one in documents], scalars, own, {})
    assert chart.title == "ROUGE-L recall: what it still says"
    assert chart.words == "Share of the true answer's words that the model's own answer holds, in their order."
    assert ">%</text>" not in base64.b64decode(chart.image.partition(",")[2]).decode()


def test_intervals_stand_behind_the_last_value_and_are_explained(tmp_path):
    last = document(3, "Bob.", 0.25) | {"bootstrap": {"resamples": 500, "seed": 0}}
    last["intervals"] = {"forget_rouge": [0.125, 0.375]}
    run = write_run(tmp_path, document(0, "Ann."), last)
    page = Page(write_page(run).read_text(encoding="utf-8")).text
    assert page.count("0.250 [0.125, 0.375]") == 2  # on top and in the table
    assert "95% interval over 500 resamples of its rows (bootstrap)" in page
    card = model_card(CardFacts("mine", "base", "NPOModule", run=run))
    assert "| 0.5 | 0.25 [0.125, 0.375] |" in card
    without = write_run(tmp_path / "without", document(0, "Ann."), document(3, "Bob."))
    assert "bootstrap" not in write_page(without).read_text(encoding="utf-8")
