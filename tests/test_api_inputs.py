"""What a notebook gives: tables, arrays and numbers of NumPy and pandas, and names in place of texts."""

import numpy
import pytest

import groundup
from groundup.model import model_folder as folders
from groundup.pipeline.run import write_manifest

TEXTS = [f"Document {number}: the cat sat on mat {number} and looked." for number in range(40)]
ASKED, ANSWER = {"role": "user", "content": "What?"}, {"role": "assistant", "content": "A cat."}


@pytest.fixture(scope="module")
def chat(tmp_path_factory, toy_decoder, toy_tokenizer):
    path = tmp_path_factory.mktemp("api") / "chat"
    folders.save(path, toy_decoder(vocab_size=toy_tokenizer.size), toy_tokenizer, chat=True)
    return groundup.load(path)


def test_a_table_as_a_whole_is_refused_and_its_rows_and_columns_are_read(chat, tmp_path):
    """Python goes through a table by the names of its columns, which are texts too, and names of files."""
    pandas, arrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    rows, texts = pandas.DataFrame({"messages": [[ASKED, ANSWER]] * 4}), pandas.DataFrame({"text": TEXTS})
    for table in (rows, arrow.Table.from_pandas(rows)):
        with pytest.raises(groundup.UserError, match="a table as a whole; give its rows"):
            groundup.sft(chat, table, tmp_path / "sft")
    for table in (texts, arrow.Table.from_pandas(texts), {"text": TEXTS}):
        with pytest.raises(groundup.UserError, match="a table as a whole; give"):
            groundup.train_tokenizer(table, 300, tmp_path / "tokenizer")
    with pytest.raises(groundup.UserError, match="a table as a whole"):
        groundup.evaluate(chat, texts)
    assert groundup.evaluate(chat, texts["text"][:2])["documents"] == 2
    assert len(groundup.train_tokenizer(texts["text"], 280, tmp_path / "tokenizer")) == 280
    assert groundup.sft(chat, rows.to_dict("records"), tmp_path / "sft", epochs=numpy.int64(1), batch_examples=2).chats


def test_splits_of_a_data_set(chat, tmp_path):
    datasets = pytest.importorskip("datasets")
    split = datasets.Dataset.from_list([{"messages": [ASKED, ANSWER]}] * 4)
    with pytest.raises(groundup.UserError, match="one split of several"):
        groundup.sft(chat, datasets.DatasetDict(train=split), tmp_path / "sft")
    assert groundup.sft(chat, split, tmp_path / "sft", epochs=1, batch_examples=2).results["steps"] == 2


def test_the_name_of_a_file_is_no_text_to_measure(chat):
    with pytest.raises(groundup.UserError, match=r"one str is no list of texts; give \[text\]"):
        groundup.evaluate(chat, "questions.jsonl")


def test_numbers_of_numpy(chat):
    given = {"max_tokens": numpy.int64(4), "temperature": numpy.float32(0.5), "top_k": numpy.int32(3), "seed": numpy.int64(1)}
    own = {name: value.item() for name, value in given.items()}
    assert chat.generate("a", **given) == chat.generate("a", **own)
    row = {"question": "What?", "choices": numpy.array(["a", "b"]), "answer": numpy.int64(1)}
    assert groundup.evaluate(chat, [row])["answer"]["n"] == 1
    with pytest.raises(groundup.UserError, match="seed = True"):
        chat.generate("a", seed=True)


def test_numbers_of_numpy_where_something_is_trained(tmp_path):
    tokenizer = groundup.train_tokenizer(TEXTS, numpy.int64(270), tmp_path / "tokenizer")
    assert groundup.train_tokenizer(TEXTS, numpy.int64(270), tmp_path / "characters", "characters").size <= 270
    settings = {"depth": numpy.int64(1), "context_length": 16, "tokens": numpy.int32(200)}
    base = groundup.pretrain(TEXTS, tokenizer, tmp_path / "base", held_out=numpy.float32(0.25), seed=numpy.int64(1), **settings)
    assert base.results["tokens"] <= 200


def test_a_file_in_place_of_a_folder(chat, tmp_path):
    file = tmp_path / "tokenizer.json"
    chat.tokenizer.save(tmp_path)
    with pytest.raises(groundup.UserError, match=r"tokenizer\.json: a file; give the folder"):
        groundup.load_tokenizer(file)
    with pytest.raises(groundup.UserError, match=r"tokenizer\.json: a file, where a folder is to be written"):
        chat.save(file)


def test_a_step_of_a_run_that_is_no_model_is_called_so(tmp_path):
    """Token files are named .bin, as pickles are: it was called pickled weights."""
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "train.bin").write_bytes(b"")
    write_manifest(tmp_path / "tokens", "tokens", {}, 0.0, {})
    with pytest.raises(groundup.UserError, match="stage tokens of a run, which is no model"):
        groundup.load(tmp_path, step="tokens")


def test_what_is_no_path(chat):
    for name in (None, 3):
        with pytest.raises(groundup.UserError, match="where the path of a file or folder is wanted"):
            groundup.load(name)


def test_a_conversation_beyond_a_reward_models_context_has_no_score(chat, tmp_path):
    """Beyond it are positions that were never trained: whatever number comes out is none."""
    pairs = [{"prompt": f"q{number}", "chosen": "a", "rejected": "b"} for number in range(4)]
    reward = groundup.reward(chat, pairs, tmp_path / "reward", epochs=1, batch_pairs=2)
    assert isinstance(reward.score([ASKED, ANSWER]), float)
    with pytest.raises(groundup.UserError, match="reward model's context 64: shorten it"):
        reward.score([{"role": "user", "content": "a " * 100}, ANSWER])
