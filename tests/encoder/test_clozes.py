from groundup.encoder.cloze_questions import cloze, paragraphs

PARAGRAPH = (
    "The city of Paris was founded by the Parisii in 250 BC. It lies on the river Seine in northern France. "
    "Its population is 2,102,650 people today. Many visitors come to see the Eiffel Tower each summer."
)


def test_a_cloze_asks_for_what_stands_in_the_paragraph():
    made = [cloze(PARAGRAPH, (0, number)) for number in range(200)]
    questions = [question for question in made if question]
    assert len({question.answers[0] for question in questions}) > 8
    with_words = 0
    for question in questions:
        [(start, text)] = question.answers
        assert question.context == PARAGRAPH and PARAGRAPH[start : start + len(text)] == text
        assert question.question.endswith("?") and f" {text} " not in question.question
        asked = {word.strip(".,?") for word in question.question.split()}
        with_words += bool(asked & {*PARAGRAPH.replace(".", "").split()})
    assert with_words > 0.9 * len(questions)  # the others are left with their question word alone


def test_question_words_suit_the_answer():
    found = {}
    for number in range(400):
        question = cloze(PARAGRAPH, (1, number))
        if question:
            found.setdefault(question.answers[0][1], set()).update(question.question.lower().split())
    assert found["2,102,650 people today"] & {"many", "much"} and found["Eiffel Tower"] & {"who", "which"}
    assert not found["Eiffel Tower"] & {"how", "when"}


def test_the_same_seed_asks_the_same():
    assert cloze(PARAGRAPH, (0, 3)) == cloze(PARAGRAPH, (0, 3))
    assert len({str(cloze(PARAGRAPH, (0, number))) for number in range(50)}) > 30


def test_a_paragraph_without_phrases_gives_none():
    assert cloze("It is. He was. They are.", (0, 0)) is None


def test_paragraphs_are_lines_of_several_sentences():
    long_enough = PARAGRAPH + " " + PARAGRAPH
    text = f"Title\n\n  {long_enough}  \nshort. line. here.\n{'word ' * 100}\n{'Much too long. ' * 100}"
    assert list(paragraphs([text])) == [long_enough]
