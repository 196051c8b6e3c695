"""Folders name their configurations and splits as `datasets` finds them, and nothing of two of them is ever mixed."""

import json
from pathlib import Path, PurePath

import datasets
import pytest

from rmfast.data.sources import content_key, read_rows, split_note
from rmfast.data.splits import choose_split, place_of
from rmfast.errors import UserError


def make(folder: Path, *names: str) -> Path:
    """A folder of these files, each of one row that tells its name."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps({"from": name}))
    return folder


def read(source: str | Path, default_split: str = "train") -> list[str]:
    """The names of the files that were read."""
    return [row["from"] for _, _, row in read_rows(str(source), default_split)]  # type: ignore[index]


@pytest.mark.parametrize(
    ("file", "config", "split"),
    [
        ("train.jsonl", "default", "train"),
        ("train-1.jsonl", "default", "train"),
        ("train_00.jsonl.gz", "default", "train"),
        ("train.part2.jsonl", "default", "train"),
        ("train-00000-of-00002.parquet", "default", "train"),
        ("data/train_prefs-00000-of-00001-a09b74b3ef9c3b56.parquet", "default", "train_prefs"),
        ("train_sft.jsonl", "default", "train_sft"),
        ("hh-test_3.jsonl", "default", "hh-test"),
        ("data/prefs-00001-of-00002.parquet", "default", "prefs"),
        ("en/train-00000-of-00001.parquet", "en", "train"),
        ("data/en/v2/Dev.jsonl", "en/v2", "Dev"),
        ("default/train/0000.parquet", "default", "train"),
        ("en/train/a.jsonl", "en", "train"),
        ("train/en/a.jsonl", "default", "train"),
        ("train/train_sft.jsonl", "default", "train_sft"),
        ("train/test_questions.jsonl", "default", "train"),
        ("my_test_rows/a.jsonl", "default", "my_test_rows"),
        ("trainer.jsonl", "default", ""),
        ("rows/part-3.jsonl", "rows", ""),
        ("2024.jsonl", "default", ""),
    ],
)
def test_what_a_path_tells(file: str, config: str, split: str) -> None:
    assert place_of(PurePath(file)) == (config, split)


def test_several_training_splits_are_named_and_not_mixed(tmp_path: Path) -> None:
    tags = ("train_prefs", "train_sft", "train_gen", "test_prefs", "test_sft")
    folder = make(tmp_path, *(f"data/{tag}-0000{n}-of-00002.jsonl" for tag in tags for n in (0, 1)))
    with pytest.raises(
        UserError, match="has no split 'train', and 3 of them could be meant; it has test_prefs, test_sft"
    ):
        read(folder)
    shards = ["data/train_prefs-00000-of-00002.jsonl", "data/train_prefs-00001-of-00002.jsonl"]
    assert read(f"{folder}#train_prefs") == shards
    assert content_key(f"{folder}#train_prefs") != content_key(f"{folder}#train_sft")
    with pytest.raises(UserError, match=f"no split 'dev'; .*: name one with #SPLIT, as in {folder}#test_prefs"):
        read(f"{folder}#dev")


def test_shards_without_splits_are_one_dataset(tmp_path: Path) -> None:
    names = ("a.jsonl", "more/b.jsonl", "more/c-1.jsonl")
    assert read(make(tmp_path, *names)) == read(tmp_path, "test") == list(names)


def test_configurations_are_named_and_not_mixed(tmp_path: Path) -> None:
    folder = make(tmp_path, "en/train-1.jsonl", "en/train-2.jsonl", "en/test.jsonl", "fr/train/a.jsonl", "docs/x.jsonl")
    with pytest.raises(UserError, match=f"has the configurations en, fr: name one, as in {folder}:en$"):
        read(folder)
    with pytest.raises(UserError, match="has no configuration 'de'; it has en, fr: name one"):
        read(f"{folder}:de")
    assert read(f"{folder}:en") == ["en/train-1.jsonl", "en/train-2.jsonl"]
    assert read(f"{folder}:en#test") == read(f"{folder}:en", "test") == ["en/test.jsonl"]
    assert read(f"{folder}:fr", "test") == ["fr/train/a.jsonl"], "there is nothing to choose from"
    with pytest.raises(
        UserError, match=f"{folder}:en has no split 'dev'; it has test, train: .*as in {folder}:en#test"
    ):
        read(f"{folder}:en#dev")


@pytest.mark.parametrize(
    ("splits", "asked", "default", "found"),
    [
        ("train test", None, "train", "train"),
        ("train test", None, "test", "test"),
        ("train train_sft", None, "train", "train"),
        ("train_sft test", None, "train", "train_sft"),
        ("training eval", None, "test", "eval"),
        ("train valid", "validation", "train", "valid"),
        ("train valid", "dev", "train", "valid"),
        ("dev validation", "dev", "train", "dev"),
        ("test", None, "train", "test"),
        ("filtered raw", None, "filtered", "filtered"),
        ("train valid dev", "validation", "train", None),
        ("train validation", None, "test", None),
        ("train test", "validation", "train", None),
        ("prefs sft", None, "train", None),
    ],
)
def test_choice_of_a_split(splits: str, asked: str | None, default: str, found: str | None) -> None:
    names = {name: name for name in splits.split()}
    if found is not None:
        assert choose_split("x", names, asked, default) == found
        return
    with pytest.raises(
        UserError, match=f"^x has no split '{asked or default}'.*; it has {', '.join(sorted(names))}: name"
    ):
        choose_split("x", names, asked, default)


def test_a_split_that_nobody_named_is_said(tmp_path: Path) -> None:
    make(tmp_path / "one", "eval.jsonl")
    make(tmp_path / "prefs", "test_prefs.jsonl", "train_prefs.jsonl")
    make(tmp_path / "none", "a.jsonl")
    assert split_note(str(tmp_path / "one")) == "split eval is read, as there is none called train"
    assert split_note(str(tmp_path / "prefs"), "test") == "split test_prefs is read, as there is none called test"
    for quiet in (f"{tmp_path}/one#eval", f"{tmp_path}/none", f"{tmp_path}/one/eval.jsonl"):
        assert split_note(quiet) == ""


CARD = """---
license: mit
configs:
- config_name: prefs
  default: true
  data_files:
  - split: train
    path: ["a/*.jsonl", b/one.jsonl]
  - split: test
    path: held/**
- config_name: sft
  data_files: "b/*"
- config_name: gone
  data_files: gone/*.jsonl
- config_name: french
  data_dir: fr
---
# A card
"""


def test_a_dataset_card_says_what_belongs_together(tmp_path: Path) -> None:
    make(tmp_path, "a/1.jsonl", "a/2.jsonl", "b/one.jsonl", "b/two.jsonl", "held/x/y.jsonl", "train.jsonl")
    make(tmp_path, "fr/valid.jsonl", "fr/train-1.jsonl", "held/.hidden.jsonl")
    (tmp_path / "README.md").write_text(CARD)
    assert read(tmp_path) == read(f"{tmp_path}:prefs#train") == ["a/1.jsonl", "a/2.jsonl", "b/one.jsonl"]
    assert read(f"{tmp_path}#test") == ["held/x/y.jsonl"]
    assert read(f"{tmp_path}:sft") == ["b/one.jsonl", "b/two.jsonl"]
    assert read(f"{tmp_path}:french#validation") == ["fr/valid.jsonl"]
    with pytest.raises(UserError, match="no configuration 'gone'; it has prefs, sft, french: name one"):
        read(f"{tmp_path}:gone")
    (tmp_path / "README.md").write_text(CARD.replace("  default: true\n", ""))
    with pytest.raises(UserError, match="has the configurations prefs, sft, french: name one"):
        read(tmp_path)
    (tmp_path / "README.md").write_text(CARD.replace("default: true", "").replace("sft", "default"))
    assert read(tmp_path) == ["b/one.jsonl", "b/two.jsonl"], "the one of that name is the default"


def test_the_card_is_followed_as_datasets_follows_it(tmp_path: Path) -> None:
    names = ("a/1.jsonl", "b/one.jsonl", "held/x/y.jsonl", "fr/valid.jsonl", "fr/train-1.jsonl", "b/two.jsonl")
    make(tmp_path / "set", *names)
    card = CARD.replace("- config_name: gone\n  data_files: gone/*.jsonl\n", "")
    (tmp_path / "set" / "README.md").write_text(card)
    for config in (None, "sft", "french"):
        loaded = datasets.load_dataset(str(tmp_path / "set"), config, cache_dir=str(tmp_path / "cache"))
        for split, rows in loaded.items():
            source = f"{tmp_path / 'set'}{f':{config}' if config else ''}#{split}"
            assert sorted(read(source)) == sorted(rows["from"]), source


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("configs: [", "dataset card in its README.md cannot be read"),
        ("configs:\n- data_files: x", "cannot be read: an entry of `configs` has no config_name"),
        ("configs: 3", "cannot be read"),
        ("configs:\n- config_name: a\n  data_files:\n  - path: x", "`configs` in its README.md cannot be read"),
        ("configs:\n- config_name: a\n  data_files: 3", "`configs` in its README.md cannot be read"),
        ("configs:\n- config_name: a\n  data_files: x", "none of the data files that its README.md names is there"),
    ],
)
def test_cards_that_cannot_be_followed(tmp_path: Path, card: str, message: str) -> None:
    make(tmp_path, "train.jsonl")
    (tmp_path / "README.md").write_text(f"---\n{card}\n---\n")
    with pytest.raises(UserError, match=message):
        read(tmp_path)


@pytest.mark.parametrize(
    "card", ["", "# Mine\n---\na: b\n---\n", "---\nno end", "---\njust words\n---\n", "---\nlicense: mit\n---\n"]
)
def test_other_readmes_say_nothing(tmp_path: Path, card: str) -> None:
    make(tmp_path, "train.jsonl", "test.jsonl")
    (tmp_path / "README.md").write_text(card)
    assert read(tmp_path) == ["train.jsonl"]
