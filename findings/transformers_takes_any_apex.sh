#!/usr/bin/env bash
# A good guess: transformers.utils.is_apex_available() says whether NVIDIA's apex is there. It looks for a package of
# that name only, and the one on PyPI (`pip install apex`) is another project, a toolkit for Pyramid without any
# `apex.optimizers` or `amp_C`: it is said to be available, and the import that follows fails. Who asks that function
# before `from apex.optimizers import FusedAdam` must catch the ImportError all the same.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q transformers==5.23.0
venv/bin/pip install -q --no-deps apex==0.9.10.dev0
cat > look.py <<'P'
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec

from transformers.utils import is_apex_available

print(f"transformers {version('transformers')}, apex {version('apex')}: available {is_apex_available()}")
print("amp_C", "found" if find_spec("amp_C") else "not found")
try:
    import_module("apex.optimizers")
    print("apex.optimizers imports")
except ImportError as error:
    print(f"apex.optimizers: {type(error).__name__}")
P
venv/bin/python look.py | tee said
diff said - <<'S'
transformers 5.23.0, apex 0.9.10.dev0: available True
amp_C not found
apex.optimizers: ModuleNotFoundError
S
