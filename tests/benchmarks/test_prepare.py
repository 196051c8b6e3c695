"""benchmarks/prepare.py: rows that differ, of the words of others, with new words at the rate of the file."""

from benchmarks.prepare import made_rows, medians, new_words, words_of

NAMES = ("tree", "house", "bird", "river", "stone", "cloud", "road", "lamp")
ASKED = [[{"role": "user", "content": f"what is a {name} and who knows {name}s"}] for name in NAMES]
ROWS = [
    {"prompt": prompt, "chosen": f"{name} yes", "rejected": "no"} for prompt, name in zip(ASKED, NAMES, strict=True)
]


def test_rows_are_mixed_and_bring_new_words() -> None:
    made = list(made_rows(ROWS, 64, seed=0))
    assert [len(row["prompt"][0]["content"].split(" ")) for row in made[:8]] == [8] * 8
    assert {turn["role"] for row in made for turn in row["chosen"]} == {"assistant"}
    prompts = {row["prompt"][0]["content"] for row in made}
    assert len(prompts) == 64, "no two are the same"
    each, exponent = new_words(ROWS, 64)
    known, brought = words_of(ROWS), words_of(made) - words_of(ROWS)
    assert 0 < exponent < 1 and 0.5 * each < len(brought) / 64 < 1.5 * each
    assert known & words_of(made), "most words are the file's"
    assert list(made_rows(ROWS, 64, seed=0)) == made


def test_medians_are_of_each_part_and_of_the_sums() -> None:
    rounds = [{"imports": a, "tokenizer": 1.0, "data": b} for a, b in ((1.0, 9.0), (2.0, 5.0), (3.0, 1.0))]
    assert medians({"trl": rounds}) == {"trl": {"imports": 2.0, "tokenizer": 1.0, "data": 5.0, "all": 8.0}}
