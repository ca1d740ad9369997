"""One module per DVC stage, a program each: read the parameters, call the library, publish one artifact."""

import os
import sys

if sys.argv[0] == "-m":  # a stage is starting
    from stages.early import end_by_signals, end_with_dvc

    end_by_signals()
    end_with_dvc()
    os.environ["TQDM_DISABLE"] = "1"  # the bars of libraries; ours say for themselves whether they are shown
    # Read when torch is loaded. Threads that wait by spinning cost 25 times their work where another program needs
    # the core, as in a pipeline on a laptop, and gain nothing where none does.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from cocomix.plumbing.streams import mend_streams

    mend_streams()

from cocomix.plumbing import sources

CODE = sources.states()
"""Of the files, before the modules of a stage are imported from them."""
