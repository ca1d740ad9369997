"""Prefect's server behind the gate."""

import argparse
import sys
from urllib.parse import urlsplit

import uvicorn
from uvicorn.config import LOG_LEVELS

from cocomix.plumbing.gate import Gate


def command(host: str, port: int, log_level: str = "warning") -> list[str]:
    """The command that runs Prefect's server behind the gate, configured by its environment and prefect.toml."""
    return [sys.executable, "-m", "flows.gate", "--host", host, "--port", str(port), "--log-level", log_level]


def main() -> None:
    """Run what `prefect server start` runs, behind the gate."""
    parser = argparse.ArgumentParser(prog="python -m flows.gate", description=__doc__)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", required=True, type=int)
    parser.add_argument("--log-level", required=True, choices=LOG_LEVELS)
    given = parser.parse_args()
    from prefect.server.api.server import create_app  # slow, and users of `command` do not need it
    from prefect.settings import get_current_settings

    server = get_current_settings().server
    public = urlsplit(server.ui.api_url or "").netloc
    uvicorn.run(
        Gate(create_app(final=True), given.port, given.host, public),
        host=given.host,
        port=given.port,
        log_level=given.log_level,
        timeout_keep_alive=server.api.keepalive_timeout,
        ws_ping_interval=server.api.websocket_ping_interval,
        ws_ping_timeout=server.api.websocket_ping_timeout,
    )


if __name__ == "__main__":
    main()
