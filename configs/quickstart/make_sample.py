"""Makes the quickstart's sample of human preferences and the tokenizer that is trained on it.

Usage: `python configs/quickstart/make_sample.py --hh FILE.jsonl.gz --oasst FILE.jsonl.gz` (what these files are stands
in README.md beside this one). The same inputs give the same bytes.

Both inputs hold one pair a line: {"prompt": messages, "chosen": str, "rejected": str, "source": str, "meta": {...}};
`meta.split` parts HH-RLHF into train and test by first user turn, `meta.parent` and `meta.rank_*` tell which of
OASST's pairs come from one ranking.
"""

import argparse
import gzip
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

Row = dict[str, Any]

HERE = Path(__file__).resolve().parent
VOCABULARY = 4096
SPECIAL_TOKENS = ["<|pad|>", "<|im_start|>", "<|im_end|>"]  # ids 0, 1, 2; decoder/config.json names them
# Whole rows in characters, the prompt counted once (about 3.9 characters a token of a large vocabulary).
MAX_PAIR = 1250
MAX_RANKING = 1800
# Most contact details in HH-RLHF are invented by the model or the crowd; which ones are not, nobody can tell.
CONTACT = re.compile(
    r"[\w.]+@[\w.]+\.\w+|email protected"
    r"|\(?\d{3}\)?[ -.]\d{3}[ -.]\d{4}(?!\d)"
    r"|(?<!\d)\d{3}-\d{2}-\d{4}(?!\d)"
    r"|\d+ [A-Z]\w+ (St|Street|Ave|Avenue|Rd|Road)\b"
)


def read(path: Path) -> list[Row]:
    """All rows of a .jsonl.gz file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write(path: Path, rows: Iterable[Row]) -> None:
    """Writes a .jsonl.gz file whose bytes depend on the rows only (no time stamp, no file name in its header)."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))


def first_turn(row: Row) -> str:
    """The first user turn, lower case, letters and digits only: the key by which train and test are kept apart."""
    return re.sub(r"\W+", " ", row["prompt"][0]["content"].lower()).strip()


def texts(row: Row) -> Iterator[str]:
    """Every text of a row: the prompt's messages, then the responses."""
    yield from (message["content"] for message in row["prompt"])
    yield from row["responses"] if "responses" in row else (row["chosen"], row["rejected"])


def fits(row: Row, max_characters: int) -> bool:
    """Whether the row is short enough and holds no contact details."""
    parts = list(texts(row))
    return sum(map(len, parts)) <= max_characters and not any(CONTACT.search(part) for part in parts)


def rankings(pairs: Iterable[Row]) -> list[Row]:
    """Joins the pairs of each parent message into one row {"prompt", "responses": best first, "source"}."""
    prompts: dict[str, list[Row]] = {}
    replies: dict[str, dict[int, str]] = {}
    for pair in pairs:
        meta = pair["meta"]
        prompts[meta["parent"]] = pair["prompt"]
        ranked = replies.setdefault(meta["parent"], {})
        ranked[meta["rank_chosen"]], ranked[meta["rank_rejected"]] = pair["chosen"], pair["rejected"]
    return [
        {"prompt": prompts[parent], "responses": [text for _, text in sorted(ranked.items())], "source": "oasst1"}
        for parent, ranked in replies.items()
    ]


def make_sample(hh: list[Row], oasst: list[Row]) -> tuple[list[Row], list[Row]]:
    """Returns the training rows (HH-RLHF pairs, then OASST rankings) and the held-out rows (HH-RLHF pairs)."""
    halves: dict[str, list[Row]] = {"train": [], "test": []}
    for row in hh:
        pair = {key: row[key] for key in ("prompt", "chosen", "rejected")} | {"source": "hh-rlhf/harmless-base"}
        if fits(pair, MAX_PAIR):
            halves[row["meta"]["split"]].append(pair)
    held_out = {first_turn(row) for row in halves["test"]}
    train = halves["train"] + [row for row in rankings(oasst) if fits(row, MAX_RANKING)]
    return [row for row in train if first_turn(row) not in held_out], halves["test"]


def train_tokenizer(rows: Iterable[Row]) -> Tokenizer:
    """A byte-level BPE of VOCABULARY tokens from the texts of `rows`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # The names of the roles stand in every rendered conversation, though not in the texts.
    corpus = [text for row in rows for text in ("user", "assistant", "system", *texts(row))]
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def main() -> None:
    """Entry point: writes train.jsonl.gz, test.jsonl.gz and decoder/tokenizer.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hh", type=Path, required=True, help="HH-RLHF pairs (.jsonl.gz)")
    parser.add_argument("--oasst", type=Path, required=True, help="OASST pairs (.jsonl.gz)")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to (default: %(default)s)")
    args = parser.parse_args()
    train, test = make_sample(read(args.hh), read(args.oasst))
    (args.out / "decoder").mkdir(parents=True, exist_ok=True)
    write(args.out / "train.jsonl.gz", train)
    write(args.out / "test.jsonl.gz", test)
    train_tokenizer(train).save(str(args.out / "decoder" / "tokenizer.json"), pretty=False)
    pairs = sum("chosen" in row for row in train)
    print(f"{pairs} training pairs, {len(train) - pairs} training rankings, {len(test)} held-out pairs")


if __name__ == "__main__":
    main()
