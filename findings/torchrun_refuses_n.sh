#!/usr/bin/env bash
# A good guess: what follows the script on torchrun's command line is the script's, whatever it is called. Under Python
# 3.11 torchrun's parser looks at all words before it knows where its own end: `--n 3` of a sampling script (its number
# of samples) is refused as an ambiguous abbreviation of --nnodes, --nproc-per-node and others, and `--k` is not. A name
# that begins none of torchrun's options, such as --samples, gets through.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3.11 -m venv venv
venv/bin/pip install -q torch==2.13.0
echo 'import sys; print("the script has", *sys.argv[1:])' > script.py
for word in --n --k --samples; do
    venv/bin/torchrun --standalone --nproc_per_node 1 script.py "$word" 3 > out 2> err || true
    grep -h "the script has" out || grep -ho "ambiguous option: $word could match --nnodes" err
done | tee said
diff said - <<'S'
ambiguous option: --n could match --nnodes
the script has --k 3
the script has --samples 3
S
