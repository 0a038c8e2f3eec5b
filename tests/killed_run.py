"""A command line that dies like the power in one training: between an epoch's log line and its checkpoint.

    python tests/killed_run.py LABEL EPOCH ARGUMENTS...

With the label "none" nothing dies.
"""

from __future__ import annotations

import os
import signal
import sys

from kdcompress.cli import main
from kdcompress.train.trainer import Trainer

LABEL, EPOCH = sys.argv[1], int(sys.argv[2])


def dies(self, minimise):
    if (self.job.label, self.at.epoch, self.at.batch) == (LABEL, EPOCH, 0):
        os.kill(os.getpid(), signal.SIGKILL)
    save(self, minimise)


save, Trainer._save = Trainer._save, dies
main(sys.argv[3:])
