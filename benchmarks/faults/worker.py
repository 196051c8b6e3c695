"""rmfast/train.py for torchrun, held in a phase: FAULTS_PHASE and FAULTS_PLACE say which, and what is made then."""

import os
import sys
from pathlib import Path

from benchmarks.faults.starts import no_reports
from benchmarks.faults.traps import trap
from rmfast.train import main

if __name__ == "__main__":
    no_reports()
    trap(os.environ["FAULTS_PHASE"], Path(os.environ["FAULTS_PLACE"]))()
    sys.exit(main(sys.argv[1:]))
