#!/bin/bash
# A good guess: a column that `datasets` 5 stores as its Json type (because its shape differs between rows) gives each
# value back as it was. It does so for lists, objects and most texts, but not for a text that is JSON itself: the answer
# "42" comes back as the number 42, "true" as True, "null" as None and "\"quoted\"" without its quotes, because a text
# that parses is stored unquoted. Nothing warns; the same rows kept as jsonl keep their texts.
set -e
cd "$(mktemp -d)"
python3 -m venv venv
venv/bin/pip install -q datasets==5.2.0
venv/bin/python - <<'P'
import datasets

datasets.disable_progress_bars()
texts = ["42", "true", "null", '"quoted"', "plain"]
rows = [{"answer": text} for text in texts] + [{"answer": [{"role": "assistant", "content": "x"}]}]
data = datasets.Dataset.from_list(rows, on_mixed_types="use_json")
data.to_parquet("rows.parquet")
read = datasets.Dataset.from_parquet("rows.parquet", cache_dir="cache")["answer"][:5]
print("datasets", datasets.__version__, data.features)
print("written:", texts)
print("read:   ", list(read))
assert list(read) == [42, True, None, "quoted", "plain"], "the behaviour has changed"
P
