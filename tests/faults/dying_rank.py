"""A command line, one process of which dies by SIGKILL within an epoch of the training, once.

    python tests/faults/dying_rank.py RANK STEP MARK ARGUMENTS...

It dies after STEP steps and leaves the file MARK; where that is, nothing dies.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from kdcompress.cli import main
from kdcompress.train.trainer import Trainer

RANK, STEP, MARK = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])


def dies(self, action, seconds):
    if (self.processes.rank, self.at.step) == (RANK, STEP) and not MARK.exists():
        MARK.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return agreed_action(self, action, seconds)


agreed_action, Trainer._agreed_action = Trainer._agreed_action, dies
main(sys.argv[4:])
