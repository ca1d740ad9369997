"""Write an autoencoder for another library: `python -m cocomix.sae.export artifacts/sae OUT --format sae-lens`."""

import argparse
import sys
from pathlib import Path
from typing import get_args

from cocomix.params import SaeFormat
from cocomix.plumbing.artifact import Artifact
from cocomix.plumbing.distributed import stand_alone
from cocomix.plumbing.errors import UserError
from cocomix.sae.autoencoder import load_sae
from cocomix.sae.formats import save_for


def main() -> None:
    """Parse the command line and write the folder."""
    stand_alone()
    parser = argparse.ArgumentParser(prog="python -m cocomix.sae.export", description=__doc__)
    parser.add_argument("artifact", type=Path, help="the folder of stage sae: artifacts/sae")
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument("--format", choices=[each for each in get_args(SaeFormat) if each != "openai"], required=True)
    parser.add_argument("--also", metavar="NAME", help="one of sae.also instead, by its name")
    arguments = parser.parse_args()
    try:
        artifact = Artifact(arguments.artifact)
        if artifact.manifest.stage != "sae":
            raise UserError(f"{artifact.path}: of stage {artifact.manifest.stage}; allowed: the folder of stage sae")
        sae = load_sae(artifact, arguments.also)
        save_for(sae, arguments.out, arguments.format)
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error.filename}: {error.strerror}")
    files = ", ".join(sorted(each.name for each in arguments.out.iterdir()))
    print(f"{arguments.out}: {sae.config.latents} latents for {arguments.format}: {files}")


if __name__ == "__main__":
    main()
