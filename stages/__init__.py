"""One module per DVC stage, a program each: read the parameters, call the library, publish one artifact."""

import signal
import sys

if sys.argv[0] == "-m":
    # A stage is starting. Until `stages.stage.main` takes over, Ctrl-C ends it without a traceback of the imports.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
