"""One program per DVC stage: it reads the parameters, calls the library and publishes one artifact."""

import gc
import os
import sys

if sys.argv[0] == "-m":  # a stage starts
    from stages.early import end_by_signals, end_with_dvc, note_start

    note_start()
    gc.disable()  # it would look through the millions of objects of the imports; `stage.main` enables it
    end_by_signals()
    end_with_dvc()
    os.environ["TQDM_DISABLE"] = "1"  # disables libraries' bars; ours set `disable` themselves
    # Torch reads this when it is loaded. Spinning OpenMP threads cost 25 times their work when another program needs
    # the core, as in a pipeline on a laptop, and gain nothing otherwise.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from cocomix.plumbing.streams import mend_streams

    mend_streams()

from cocomix.plumbing import sources

CODE = sources.states()
"""File states, taken before a stage imports its modules."""
