"""What Python imports as `flows` when a program of this folder is started by its path, which does not work."""

import sys

if __name__ == "flows":
    sys.exit("error: start a program of flows from the project's folder by its name, such as: python -m flows.pipeline")
