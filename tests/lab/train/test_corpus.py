"""Text corpora: the embedded default, files and folders, and how they are split."""

import gzip
import lzma
import sysconfig

import pytest
import torch

from polarlight.lab.train.corpus import load_corpus
from polarlight.lab.train.data import Corpus, DataError, Tokens

TEXT = bytes(range(32, 127)) * 10


def contents(tokens: Tokens) -> bytes:
    return bytes(torch.cat(tokens.pieces).tolist())


def write_files(folder, count):
    """Files 000.txt, 001.txt, ... that hold their own number."""
    folder.mkdir()
    for i in range(count):
        (folder / f"{i:03}.txt").write_text(f"<{i:03}>")
    return folder


@pytest.fixture(scope="module")
def standard_library() -> Corpus:
    return load_corpus(None)


def test_the_embedded_corpus_is_large_and_of_bytes(standard_library):
    tokens = len(standard_library.train) + len(standard_library.validation)
    assert tokens > 10_000_000
    assert standard_library.vocab_size == 256
    assert standard_library.name.endswith("standard library")
    share = len(standard_library.validation) / tokens
    assert 0.02 < share < 0.1  # a twentieth of the files; their sizes differ


def test_the_embedded_corpus_is_the_same_every_time(standard_library):
    again = load_corpus(None)
    assert again.fingerprint == standard_library.fingerprint
    assert torch.equal(again.train.pieces[0], standard_library.train.pieces[0])
    assert torch.equal(again.validation.pieces[0], standard_library.validation.pieces[0])


def test_the_embedded_corpus_has_no_installed_packages(tmp_path, monkeypatch):
    for folder in ("json", "site-packages/torch", "__pycache__", "json/__pycache__"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "module.py").write_text(folder)
    (tmp_path / "notes.txt").write_text("not Python")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    corpus = load_corpus(None)
    assert contents(corpus.train) + contents(corpus.validation) == b"json\0"


@pytest.mark.parametrize("folder", ["empty", "python311.zip"])
def test_an_interpreter_without_sources_raises_with_the_data_option(tmp_path, monkeypatch, folder):
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path / folder)})
    with pytest.raises(DataError, match=f"{folder}.*frozen or zipped.*pass --data"):
        load_corpus(None)


def test_a_text_file_ends_with_its_validation_split(tmp_path):
    file = tmp_path / "text.txt"
    file.write_bytes(TEXT)
    corpus = load_corpus(file)
    assert contents(corpus.train) + contents(corpus.validation) == TEXT
    assert len(corpus.validation) == len(TEXT) // 10
    assert corpus.vocab_size == 256
    assert load_corpus(file, vocab_size=320).vocab_size == 320


@pytest.mark.parametrize(("suffix", "pack"), [(".xz", lzma.compress), (".gz", gzip.compress)])
def test_a_packed_file_is_the_file_that_it_packs(tmp_path, suffix, pack):
    plain, packed = tmp_path / "text.txt", tmp_path / f"text.txt{suffix}"
    plain.write_bytes(TEXT)
    packed.write_bytes(pack(TEXT))
    assert load_corpus(packed).fingerprint == load_corpus(plain).fingerprint
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(DataError, match=rf"text\.txt{suffix} is not a whole {suffix} file"):
        load_corpus(packed)
    packed.write_bytes(TEXT)
    with pytest.raises(DataError, match=rf"text\.txt{suffix} is not a whole {suffix} file"):
        load_corpus(packed)


def test_a_small_folder_is_joined_in_order_and_cut(tmp_path):
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    (tmp_path / "b" / "c" / "two.md").write_bytes(b"two")
    (tmp_path / "b.py").write_bytes(b"one")
    (tmp_path / "three.jsonl.xz").write_bytes(lzma.compress(b"three"))
    for skipped in (".git/x.txt", ".hidden.txt", "image.png"):
        (tmp_path / skipped).write_bytes(b"skipped")
    corpus = load_corpus(tmp_path)
    assert contents(corpus.train) + contents(corpus.validation) == b"one\0two\0three\0"
    assert len(corpus.validation) == 1


def test_a_large_folder_is_split_by_file(tmp_path):
    corpus = load_corpus(write_files(tmp_path / "many", 100))
    train = contents(corpus.train).split(b"\0")[:-1]
    held = contents(corpus.validation).split(b"\0")[:-1]
    assert len(held) == 5
    assert not set(train) & set(held)
    assert sorted(train + held) == [b"<%03d>" % i for i in range(100)]
    assert held != [b"<%03d>" % i for i in range(95, 100)]


def test_the_split_depends_on_relative_paths_alone(tmp_path):
    first = load_corpus(write_files(tmp_path / "first", 40))
    second = load_corpus(write_files(tmp_path / "second", 40))
    assert first.fingerprint == second.fingerprint
    (tmp_path / "second" / "000.txt").write_text("<999>")
    changed = load_corpus(tmp_path / "second")
    assert changed.fingerprint != first.fingerprint
    assert contents(changed.validation) == contents(first.validation)


@pytest.mark.parametrize(("files", "held"), [(19, 19 * 6 // 10), (20, 6), (21, 2 * 6)])
def test_twenty_files_are_enough_to_hold_one_out(tmp_path, files, held):
    corpus = load_corpus(write_files(tmp_path / "files", files))  # 6 bytes each, with the 0
    assert len(corpus.validation) == held


def test_a_missing_path_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.txt does not exist; expected a text file"):
        load_corpus(tmp_path / "nowhere.txt")


def test_an_empty_folder_raises_with_the_suffixes_searched(tmp_path):
    (tmp_path / "image.png").write_bytes(b"png")
    with pytest.raises(DataError, match=r"holds no data; .*\*\.bin.*\*\.txt, .*\*\.jsonl.*\.xz"):
        load_corpus(tmp_path)


@pytest.mark.parametrize(
    ("name", "empty"),
    [("a.txt", b""), ("a.txt.gz", gzip.compress(b"", mtime=0))],
    ids=["plain", "packed"],
)
def test_an_empty_file_is_an_error(tmp_path, name, empty):
    (tmp_path / name).write_bytes(empty)
    with pytest.raises(DataError, match=rf"{name} is empty"):
        load_corpus(tmp_path / name)


def test_a_file_that_cannot_be_read_is_an_error_and_is_not_left_out(tmp_path):
    (tmp_path / "good.txt").write_bytes(TEXT)
    (tmp_path / "dangling.txt").symlink_to(tmp_path / "gone.txt")
    with pytest.raises(DataError, match=r"dangling\.txt cannot be read: No such file"):
        load_corpus(tmp_path)


def test_text_needs_a_vocabulary_of_all_bytes(tmp_path):
    (tmp_path / "text.txt").write_bytes(TEXT)
    with pytest.raises(DataError, match=r"vocab_size = 255 .*text\.txt.* at least 256"):
        load_corpus(tmp_path / "text.txt", vocab_size=255)


def test_a_text_shorter_than_the_context_raises_with_the_needed_length(tmp_path):
    (tmp_path / "text.txt").write_bytes(TEXT)
    with pytest.raises(DataError, match=r"validation split of .*text\.txt has 95 tokens.* 129"):
        load_corpus(tmp_path / "text.txt").require(context=128)
