"""What a command does before it imports torch and transformers, which takes seconds: which model, and which port."""

import socket
from pathlib import Path

from cocomix.params import CocomixParams, load
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.loopback import LOOPBACK

HOST = LOOPBACK[0]


def default_model(artifacts: Path) -> Path:
    """The folder of the first seed's CoCoMix model; if only forms of it are listed, of the first form's."""
    pretrain = load().pretrain
    named = [
        name
        for name, section in pretrain.listed.items()
        if isinstance(section, CocomixParams) and section.predicts == "concepts"
    ]
    name = "cocomix" if "cocomix" in named or not named else named[0]
    return artifacts / "models" / f"{name}-{pretrain.seeds[0]}"


def listening(port: int) -> socket.socket:
    """A socket that listens on loopback. Connections wait until a server takes them.

    Args:
        port: 0 for any free port.

    Raises:
        UserError: when the port is taken.
    """
    opened = socket.socket()
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind((HOST, port))
    except OSError as error:
        opened.close()
        raise UserError(f"--port {port}: {error.strerror}; 0 takes one that is free") from None
    opened.listen()
    return opened


def address_of(opened: socket.socket) -> str:
    """The address of a listening socket, for a browser."""
    return f"http://{HOST}:{opened.getsockname()[1]}/"
