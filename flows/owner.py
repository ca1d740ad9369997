"""Whose a server's deployments are: they are known by names, and of two clones one would take the other's runs."""

import re
import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from prefect import get_client
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound

from cocomix.errors import UserError

LATELY = timedelta(minutes=1)
"""A worker asks for runs every 15 s, and `flows.serve` every 2 s."""


class _Owner(NamedTuple):
    """Who runs a deployment."""

    host: str
    """Empty: any with a worker."""
    folder: Path

    def __str__(self) -> str:
        return f"{self.host}:{self.folder}" if self.host else str(self.folder)


def owner_tag() -> str:
    """The tag of the deployments that are served from the working directory, and of their runs: `host:/folder`."""
    return str(_Owner(socket.gethostname(), Path.cwd()))


def check_owner(names: Iterable[str]) -> None:
    """See that the server's deployments of these names, such as pipeline/manual, are those of the working directory.

    A folder that is gone owns none. Whether one on another machine is there cannot be seen from here: it is one that
    has asked for runs lately.

    Raises:
        UserError: when one belongs to another folder.
    """
    with get_client(sync_client=True) as client:
        for name in names:
            with suppress(ObjectNotFound):
                deployment = client.read_deployment_by_name(name)
                for owner in _owners(deployment):
                    if _is_another(owner, deployment):
                        advice = "give those in prefect.yaml other names, or, if that one is to serve no more,"
                        raise UserError(
                            f"deployment {name} belongs to {owner}; {advice} `prefect deployment delete {name}`"
                        )


def _owners(deployment: DeploymentResponse) -> Iterator[_Owner]:
    for tag in deployment.tags:
        if found := re.fullmatch(r"([^:/]+):(/.*)", tag):
            yield _Owner(found[1], Path(found[2]))
    for step in deployment.pull_steps or []:  # of `prefect deploy`
        for arguments in step.values():
            if folder := arguments.get("directory"):
                yield _Owner("", Path(folder))


def _is_another(owner: _Owner, deployment: DeploymentResponse) -> bool:
    host, polled = socket.gethostname(), deployment.last_polled
    if owner.host in ("", host):
        if owner.folder == Path.cwd():
            return False
        if (owner.folder / "prefect.yaml").exists():
            return True
    return owner.host != host and polled is not None and datetime.now(UTC) - polled < LATELY
