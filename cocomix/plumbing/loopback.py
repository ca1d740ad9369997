"""Connect to this machine's own servers without a proxy, even if the environment names one."""

import os

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def ask_directly(*hosts: str) -> None:
    """Exclude hosts from proxies in this process and its children, for httpx, websockets and urllib.

    Both spellings of the variable are set, since programs differ in which one they prefer.
    """
    listed = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    names = [name for each in listed.split(",") if (name := each.strip())]
    text = ",".join(dict.fromkeys([*names, *hosts]))
    os.environ |= {"no_proxy": text, "NO_PROXY": text}
