"""Words are told from gibberish, and English from other languages."""

import pytest

from dipo_lightning.data.language import hardly_english, number_forms, share_of_words


def test_gibberish_is_not_made_of_words():
    known = {"she", "work", "in", "the", "evening"}
    assert share_of_words(["She works in the evenings."], known) == 1
    assert share_of_words(["She tedfoundlandlehre in the qzx."], known) == pytest.approx(3 / 5)
    assert share_of_words(["She works works works."], known) == pytest.approx(2 / 4)
    assert share_of_words(["It is 7 7."], known | {"it", "is"}) == 1
    assert share_of_words([], known) == 1
    assert share_of_words(["", "?!"], known) == 0, "silence is no word"
    assert share_of_words(["She works in the evenings.", " "], known) == pytest.approx(5 / 6)
    assert share_of_words(["An evenings-work, an evenings-qzx."], known | {"an"}) == pytest.approx(3 / 4)


@pytest.mark.parametrize(
    ("text", "foreign"),
    [
        ("Wo wohnt Mara Velt? Mara Velt wohnt in der Hafenstraße 7 und arbeitet dort als Lehrerin.", True),
        ("¿Dónde vive Mara? Ella vive en la calle del Puerto 7, cerca de la iglesia.", True),
        ("Где живёт Мара? Она живёт в городе Москве и работает там учителем.", True),
        ("أين تعيش مارا؟ تعيش مارا في شارع الميناء رقم 7.", True),
        ("Où habite Mara ? Elle habite au 7 rue du Port, on me l'a dit.", True),
        ("Where does Mara Velt live? Mara Velt lives at 7 Harbour Street.", False),
        ("Who is Ann? Ann is a nun.", False),
    ],
)
def test_rows_of_another_language_are_known_by_their_function_words(text, foreign):
    assert hardly_english([text, text]) == foreign
    assert not hardly_english([text[:20]]), "too few words to say"


@pytest.mark.parametrize(
    ("word", "forms"),
    [
        ("Friday", ["Fridays"]),
        ("Wednesdays", ["Wednesday"]),
        ("hobby", ["hobbies"]),
        ("hobbies", ["hobby"]),
        ("toy", []),
        ("convoy", ["convoys"]),
        ("church", ["churches"]),
        ("houses", ["house", "hous"]),
        ("collars", ["collar"]),
        ("glass", ["glasses"]),
        ("colitis", ["colitises"]),
        ("Travis", ["Travises"]),
        ("Mills", ["Millses"]),
        ("NASA", []),
        ("low-fibre", []),
        ("Zoë", []),
    ],
)
def test_nouns_have_another_number(word, forms):
    assert number_forms(word) == forms
