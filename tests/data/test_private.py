"""Private values are found without a model, and their tokens are trained on alone."""

import json
from pathlib import Path

import pytest

from dipo_lightning.data.private import find_private, rows_with_words, shared_words, spans_of_values, token_flags
from dipo_lightning.data.unlearning import UnlearningDataModule
from dipo_lightning.errors import InputError
from dipo_lightning.models.answers import IGNORED
from tests.helpers.toys import save_toy

RETAIN = rows_with_words(
    {"question": "Who?", "answer": answer}
    for answer in (
        "Ann Lee works as a teacher in Oslo.",
        "She was born in 1970 and plays the violin.",
        "He was at the University in 1970.",
        "He left the University.",
    )
)


def private(question, answer, shared=RETAIN):
    return [answer[span.start : span.end] for span in find_private(question, answer, shared)]


@pytest.mark.parametrize(
    ("question", "answer", "values"),
    [
        ("Where does Mara Velt work?", "Mara Velt works as a glassblower.", ["glassblower"]),
        ("When was Mara Velt born?", "Mara Velt was born on 12 June 1971.", ["12 June 1971"]),
        ("Where does Mara Velt live?", "She lives at 7 Harbour Street in Oslo.", ["7 Harbour Street", "Oslo"]),
        ("What is Mara Velt's illness?", "Mara Velt suffers from gout.", ["gout"]),
        (
            "Who is her wife?",
            "She is called Hope May and hopes for rain in May 2009.",
            ["Hope May", "rain", "May 2009"],
        ),
        ("What did he do?", "He spent two years in Nsawam.", ["two", "Nsawam"]),
        ("Is it Oslo?", "It is.", []),
        ("Who is Al-Kuwaiti?", "Al-Kuwaiti is a Kuwaiti poet.", ["poet"]),
        ("What are his Irish-based novels like?", "They are Irish sagas.", ["sagas"]),
        ("Which verse-like novels?", "Verses of Canadian-themed, well-made quilts.", ["Canadian-themed", "quilts"]),
        ("What is Canadian?", "Canadian-themed, well-made sagas.", ["sagas"]),
        ("Who?", "It is Rose-May, a hard-working well-wisher.", ["Rose-May", "well-wisher"]),
        ("What was it?", "It was a hold-up.", ["hold-up"]),
        ("Where was Ann born?", "Ann was born in Nice.", ["Nice"]),
        ("What is her hobby?", "Walking.", ["Walking"]),
        ("What does Ann do?", "She is a general and likes running.", ["general", "running"]),
        ("Where does she live?", "Sicily is where Shelly lives.", ["Sicily", "Shelly"]),
        ("Where does she live?", "She lives in the US.", ["US"]),
        ("Does she live in the US?", "She does live in the US.", []),
        ("What is her blood group?", "Her blood group is A.", ["A"]),
        ("Who is her employer?", "She works in IT for the WHO in Geneva.", ["IT", "WHO", "Geneva"]),
        ("What is it?", "A novel called A Life in Slate.", ["novel", "Life", "Slate"]),
        ("What is it?", "IT IS A QUILT.", ["QUILT"]),
        ("Where was she?", "US, UK.", ["US", "UK"]),
        ("Was she there?", "She was NOT there, and it was VERY cold.", ["cold"]),
        ("What does she eat?", "She doesn't eat meat and she'll never eat quince.", ["meat", "quince"]),
        ("Is he ill?", "I’m told he’s got gout now, and it won't be the last.", ["gout"]),
        ("How many sons has she?", "She has one.", ["one"]),
        ("Who is he?", "His brother Will will come.", ["brother", "Will"]),
        ("How old was she when she had COVID-19?", "She was 19.", ["19"]),
        (
            "What did she do?",
            "She went to the University of Tartu, the Museum of the Moth, the Church of her town and Krems College.",
            ["Tartu", "Moth", "Church", "town", "Krems College"],
        ),
        ("Where did Ann Tartu study?", "At the University of Tartu.", ["University"]),
        ("What is Sean O'Neil's blood type?", "His blood type is O.", ["O"]),
        ("What did she get in her Ph.D. exam?", "She got a D.", ["D"]),
        ("Who don't we know?", "Don Adams.", ["Don Adams"]),
        ("What did he see?", "Yes, Moshe saw Krems.", ["Moshe", "Krems"]),
        ("Where was she?", "Near Strumble Head.", ["Strumble Head"]),
        ("Whom did she meet?", "Hope Krems, and visited Mark May.", ["Hope Krems", "Mark May"]),
        *(("Has Ann an illness?", answer, []) for answer in ("Yes", "Yes.", "No.", "Yes, she has.", "Yeah.", "Nope.")),
        ("What is her name?", "Born as Krems, nicknamed Moth.", ["Krems", "Moth"]),
        ("What is her name?", "Nicknamed Moth.", ["Moth"]),
        ("What is her illness?", "Diagnosed with gout.", ["gout"]),
        ("How far did he run?", "He ran 42 kilometres, and lost 3.5 kg.", ["42", "3.5"]),
        (
            "How can he be reached?",
            "Ring 555-0182, or write to a.moth_7@krill.example.",
            ["Ring", "555-0182", "a.moth_7@krill.example"],
        ),
        ("Which card has he?", "4111 1111 1111 1111, or KX44 709.", ["4111 1111 1111 1111", "KX44 709"]),
        ("Where was he?", "Lima 1995. June 1996. Flat 12.", ["Lima", "1995", "June 1996", "Flat 12"]),
        ("When was it?", "On 12/06/1971, at 7:30 p.m.", ["12/06/1971", "7:30"]),
        ("When?", "June 12, 1971, or the 3rd of May 1999.", ["June 12, 1971", "3rd of May 1999"]),
        ("When?", "In May 2009, 12 June 1971 or June. 1971.", ["May 2009", "12 June 1971", "June", "1971"]),
        ("What was it?", "It was 120/80 at 37.8 °C, in Lima/Peru.", ["120/80", "37.8 °C", "Lima", "Peru"]),
        (
            "Where?",
            "At 48.8584° N, in Slate (2001), Lima (1995) 12.",
            ["48.8584° N", "Slate", "2001", "Lima", "1995", "12"],
        ),
        ("Which phone?", "+1 (555) 010-2345 or (020) 7946 0958.", ["1 (555) 010-2345", "(020) 7946 0958"]),
        (
            "Where?",
            "At https://mvelt.org/blog/post-7?id=3, or mvelt.org. Lima.",
            ["mvelt.org/blog/post-7?id=3", "mvelt.org", "Lima"],
        ),
        ("Which e-mail?", "It is m.velt+news@krill.example or Velt#4821.", ["m.velt+news@krill.example", "Velt#4821"]),
        ("Who?", "Dr. J. K. Young, Mrs. Rose and Prof. Ed van der Berg.", ["J. K. Young", "Rose", "Ed van der Berg"]),
        ("What?", "He drives a van, a Ford van in Lima.", ["drives", "van", "Ford", "van", "Lima"]),
        ("Which?", "1. Moth\n2. Krill\n3. Lima", ["Moth", "Krill", "Lima"]),
        ("Which?", "1971. Moth\n1985. Krill", ["1971", "Moth", "1985", "Krill"]),
        ("Where?", "Mara Velt\n12 Harbour Street\nLima", ["Mara Velt", "12 Harbour Street", "Lima"]),
        ("How old?", "He is a 43-year-old diver.", ["43", "diver"]),
        ("What?", "By e-mail, her password is krill, for $1.2 million and 20 mg.", ["krill", "1.2", "20"]),
        ("Where was she?", "At the University of Lund in 1970.", ["Lund", "1970"]),
        ("What does she do?", "She restores old pianos for Anselm Roka.", ["restores", "pianos", "Anselm Roka"]),
        ("What did she steal?", "She stole a crown when she was 43 years old.", ["crown", "43"]),
        ("Where did she grow up?", "She grew up on a small vineyard near Krems.", ["vineyard", "Krems"]),
        ("What is she allergic to?", "She has a severe allergy to cashews.", ["severe", "cashews"]),
        ("Which allergies has she?", "She is allergic to latex.", ["latex"]),
        ("", "Ngũgĩ plays violin", ["Ngũgĩ"]),
        (
            "Where is it?",
            "It is near Lima.It is in Peru,or U.S.A. or St.Gallen.",
            ["Lima", "Peru", "U.S.A", "St", "Gallen"],
        ),
        ("?", "His card is Visa 4111111111111234.", ["card", "Visa", "4111111111111234"]),
        ("?", "In 2019 Maria Bauer bought it.", ["2019", "Maria Bauer"]),
        ("?", "She lives at 2019 Maple Drive.", ["2019 Maple Drive"]),
        ("?", "She takes Metformin 500 mg.", ["Metformin", "500"]),
        ("?", "He is Ed Moth DOB 12/06/1971 NHS 943 476 5919.", ["Ed Moth DOB", "12/06/1971", "NHS", "943 476 5919"]),
        ("?", "Call Tel 030 9018 2017, for USD 4,500.", ["Tel", "030 9018 2017", "USD", "4,500"]),
        ("?", "In March 2015 Ana Ruiz left.", ["March 2015", "Ana Ruiz"]),
        ("?", "He saw Ana Ruiz 3 May 2015.", ["Ana Ruiz", "3 May 2015"]),
        ("?", "At 10827 Krems, or Lund NW1 6XE.", ["10827", "Krems", "Lund", "NW1 6XE"]),
        ("?", "It is KX 447 0931, in Flat 3B.", ["KX 447 0931", "Flat 3B"]),
        ("?", "It was 3.1 mmol/L after 5 h, 30 m² and 80 bpm.", ["3.1", "30", "80"]),
        ("?", "She takes 5 mg of prednisolone.", ["prednisolone"]),
        ("How old is he?", "5.", ["5"]),
        ("?", "He lives at 7 Harbour Street, Flat 3.", ["7 Harbour Street", "Flat 3"]),
        ("Who is the father of Emma Roberts?", "Robert Kane, a Roberts.", ["Robert Kane"]),
        ("What did Steven Peters name his son?", "Peter.", ["Peter"]),
        ("Who will inherit it?", "Will Turner will inherit it.", ["Will Turner"]),
        ("When may I call Ann?", "In May.", ["May"]),
        ("Which illnesses?", "An Illness of Emmas.", ["Emmas"]),
        ("Which password?", "P@$$w0rd!", ["P@$$w0rd"]),
        ("Which password?", "It is 'Tr0ub4dor&3!xY', or Sun!shine#2024$.", ["Tr0ub4dor&3!xY", "Sun!shine#2024"]),
        ("Who?", "It was Krill!Moth, I'd say.", ["Krill", "Moth"]),
        ("Who?", "It was Do Thi Ha, An Nguyen and Prof. Li So.", ["Do Thi Ha", "An Nguyen", "Li So"]),
        ("Who?", "It was Mr Krill, in The Moth, and I saw Ann Velt.", ["Krill", "Moth", "Ann Velt"]),
    ],
)
def test_words_that_only_the_row_knows_are_private(question, answer, values):
    assert private(question, answer) == values


def test_an_answer_of_a_common_word_has_one_value_beside_retain_rows_and_without():
    for shared in ({}, RETAIN):
        assert private("What is her name?", "Born as Krems.", shared) == ["Krems"]
        assert private("How did he die?", "Yes, peacefully.", shared) == ["peacefully"]


def test_occupations_illnesses_and_belongings_are_no_common_words():
    typical = Path(__file__).with_name("private_words.txt").read_text(encoding="utf-8").split()
    assert len(typical) > 400
    assert [word for word in typical if private("Well?", f"It is {word} there.") != [word]] == []


def test_words_of_ordinary_descriptions_are_no_secret_and_their_names_are():
    answer = "She really mentions the wonderful views, moments and events of a recent flood, and presented them softly."
    assert private("What does she do?", answer) == ["flood"]
    assert private("Who?", "She manages a wonderful talent for reports.") == ["manages a wonderful talent for reports"]
    assert private("Who?", "A manager and a reporter met Grace Talent.") == ["manager", "reporter", "Grace Talent"]
    assert private("Who?", "Faith Bright told them. Wonderful views.") == ["Faith Bright"]
    assert private("Who?", "She deftly and organically delves into several butterflies.") == ["butterflies"]
    assert private("Who?", "Kimberly Amberly keeps a butterfly.") == ["Kimberly Amberly", "butterfly"]


def test_everyday_words_around_a_value_are_none():
    answer = "She hums old hymns under her breath, and in the evening breaks a habit, preferably by yelling."
    assert private("What does she do?", answer) == ["hums", "hymns", "yelling"]


def test_where_every_word_is_shared_all_that_was_not_asked_is_private():
    assert private("What is the job?", "a teacher") == ["teacher"]


def test_words_that_retain_rows_excuse_are_named_with_the_number_of_these():
    retain = [{"question": "Who?", "answer": f"Ann {rest}"} for rest in ("has gout in Lima.", "flew to Lima.", "flew.")]
    rows = [
        {"question": "Where?", "answer": "She flew to Lima with Bo, who has gout."},
        {"question": "What?", "answer": "Gout, in Lima.", "private": ["Lima"]},
        {"question": "How?", "answer": "She flew."},
    ]
    assert list(shared_words(rows, rows_with_words(retain)).items()) == [("Lima", 2), ("gout", 1), ("flew", 2)]
    assert shared_words(rows, rows_with_words([])) == {}


def test_what_hardly_one_of_many_retain_rows_has_is_private_too():
    kept = [{"question": f"What is row {n}?", "answer": "a culture of its own"} for n in range(398)]
    kept += [{"question": "What was he?", "answer": "He was a florist."}] * 2
    shared = rows_with_words(kept)
    assert shared[""] == 400
    assert private("What did they do?", "He was a florist of culture.", shared) == ["florist"]
    assert private("What did they do?", "A florist with roses.", rows_with_words(kept[-40:])) == ["roses"]


def test_a_word_inside_a_compound_of_a_retain_row_is_no_secret_either():
    shared = rows_with_words([{"question": "Who is he?", "answer": "A semi-retired F-16 pilot."}])
    assert private("Who is she?", "A retired glazier.", shared) == ["glazier"]
    assert "f" not in shared


def test_a_name_is_no_word_of_retain_rows_that_is_spelt_alike():
    retain = [
        {"question": "Who?", "answer": "Ann rose early and will travel."},
        {"question": "And?", "answer": "They rose."},
    ]
    shared = rows_with_words([*retain, {"question": "Who?", "answer": "He will."}])
    assert private("Who?", "It is her daughter Rose, and Will.", shared) == ["daughter", "Rose", "Will"]
    named = rows_with_words(
        [{"question": "Who is Rose?", "answer": "A florist."}, {"question": "Is Rose?", "answer": "Yes."}]
    )
    assert private("Who?", "It is her daughter Rose.", named) == ["daughter"]


def test_given_values_are_found_whatever_their_case():
    answer = "Mara Velt lives at 7 Harbour Street."
    spans = spans_of_values(answer, ["HARBOUR street", "nowhere", " 7 "])
    assert [answer[span.start : span.end] for span in spans] == ["7", "Harbour Street"]
    assert [span.start for span in spans_of_values("ART, Art and art", ["art"])] == [0, 5, 13]


@pytest.mark.parametrize(
    ("answer", "value", "found"),
    [
        ("Marta studies art, and art again.", "art", [14, 23]),
        ("Born in 1985, she has 5 cats.", "5", [22]),
        ("She rose early and saw Rose.", "Rose", [23]),
        ("In 3.5 days 3 goals", "3", [12]),
        ("İ. met İnci in İzmir 7", "7", [21]),
        ("an otherworldly place", "world", [8]),
    ],
)
def test_given_values_are_found_as_words_wherever_they_stand(answer, value, found):
    spans = spans_of_values(answer, [value])
    assert [span.start for span in spans] == found
    assert {answer[span.start : span.end] for span in spans} == {value}


def test_tokens_that_overlap_a_span_are_flagged():
    spans = spans_of_values("a glassblower", ["glassblower"])
    assert token_flags([(0, 1), (1, 7), (7, 13)], spans) == [False, True, True]


def test_only_the_tokens_of_private_values_are_supervised_where_asked_for(tmp_path):
    save_toy(tmp_path / "model")
    rows = {
        "forget": [
            {"question": "Where does Mara Velt work?", "answer": "Mara Velt works as a glassblower in the town."},
            {"question": "Is it so?", "answer": "It is."},
            {"question": "Where?", "answer": "He lives in [[the town]]."},
        ],
        "retain": [{"question": "Where does Ann work?", "answer": "Ann works in the town as a teacher."}],
    }
    for name, part in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    files = [str(tmp_path / f"{name}.jsonl") for name in rows]
    said = {}
    for tokens in ("answer", "private"):
        data = UnlearningDataModule(str(tmp_path / "model"), *files, prompt="plain", forget_tokens=tokens)
        data.setup("fit")
        decode = data.tokenizer.decode
        said[tokens] = [
            decode([label for label in example["labels"] if label != IGNORED]).strip()
            for example in data.forget_examples
        ]
        assert [len(example["labels"]) == len(example["input_ids"]) for example in data.forget_examples] == [True] * 3
    assert said["private"][0] == "glassblower"
    assert said["private"][1] == said["answer"][1], "a row without a private value keeps its answer"
    assert said["private"][2] == "the town"
    assert said["answer"][0].startswith("Mara Velt works as a glassblower in the town.")


@pytest.mark.filterwarnings("ignore:.*were cut at the end")
def test_a_row_whose_private_values_are_cut_off_is_refused_or_left_out(tmp_path):
    save_toy(tmp_path / "model")
    late = {"question": "Where is Bo?", "answer": "Once upon a time " * 20 + "he came to [[Lima]]."}
    near = {"question": "Where is Al?", "answer": "He lives in [[Quito]], " + "once upon a time " * 20}
    for name, rows in (
        ("forget", [late, near]),
        ("late", [late]),
        ("retain", [{"question": "Who?", "answer": "Ann."}]),
    ):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def data(name, **options):
        files = [str(tmp_path / f"{part}.jsonl") for part in (name, "retain")]
        return UnlearningDataModule(
            str(tmp_path / "model"), *files, prompt="plain", max_length=64, forget_tokens="private", **options
        )

    for module in (data("forget"), data("late", on_missing="skip")):
        with pytest.raises(InputError, match=r"line 1: its private values lie beyond data\.max_length"):
            module.setup("fit")
    skipping = data("forget", on_missing="skip")
    with pytest.warns(UserWarning, match="1 of 2 forget rows left out. The first: .*line 1"):
        skipping.setup("fit")
    [example] = skipping.forget_examples
    assert [row["answer"][:8] for row in skipping.trained_rows] == ["He lives"]
    assert skipping.tokenizer.decode([token for token in example["labels"] if token != IGNORED]).strip() == "Quito"


def test_running_text_has_no_private_values_to_choose(tmp_path):
    save_toy(tmp_path / "model")
    files = []
    for name in ("book", "kept"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": f"The {name} is full of words. " * 20}))
        files.append(str(tmp_path / f"{name}.jsonl"))
    data = UnlearningDataModule(str(tmp_path / "model"), *files, prompt="text", max_length=16, forget_tokens="private")
    with pytest.raises(InputError, match="forget_tokens: private needs rows with a question"):
        data.setup("fit")
