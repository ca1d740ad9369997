"""What is on this machine is asked directly, whatever proxy the environment names."""

import os

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def ask_directly(*hosts: str) -> None:
    """Have this process, and those that it starts, reach hosts without a proxy: all that httpx, websockets, urllib ask.

    The variable is known by two names, and which one counts where both are set depends on who reads it.
    """
    listed = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    names = [name for each in listed.split(",") if (name := each.strip())]
    text = ",".join(dict.fromkeys([*names, *hosts]))
    os.environ |= {"no_proxy": text, "NO_PROXY": text}
