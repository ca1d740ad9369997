"""Error for a program of this folder that is started by its path: Python then imports this file as `flows`."""

import sys

if __name__ == "flows":
    sys.exit("error: start a program of flows from the project's folder by its name, such as: python -m flows.pipeline")
