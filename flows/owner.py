"""Check that a server's deployments belong to this folder, and that they are what the project defines.

Deployments are identified by name, so one of two clones would take the other's runs. And anyone who reaches the server
can change them.
"""

import re
import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from prefect import get_client
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound
from prefect.runtime import deployment, flow_run

from cocomix.plumbing.errors import UserError

SET_FOLDER = "prefect.deployments.steps.set_working_directory"
"""The only step that `prefect deploy` gives the project's deployments."""
LATELY = timedelta(minutes=1)
"""A deployment polled within this time is served: a worker polls every 15 s, `flows.serve` every 2 s."""


class _Owner(NamedTuple):
    """The machine and folder that serve a deployment."""

    host: str
    """Empty: any machine with a worker."""
    folder: Path

    def __str__(self) -> str:
        return f"{self.host}:{self.folder}" if self.host else str(self.folder)


def owner_tag() -> str:
    """Tag of the deployments served from the working directory, and of their runs: `host:/folder`."""
    return str(_Owner(socket.gethostname(), Path.cwd()))


def check_owner(names: Iterable[str]) -> None:
    """Check that deployments with these names, such as pipeline/manual, belong to the working directory.

    A folder that no longer exists owns none. Folders on other machines cannot be checked: one counts as existing if its
    deployment was polled recently.

    Raises:
        UserError: when a deployment belongs to another folder.
    """
    with get_client(sync_client=True) as client:
        for name in names:
            with suppress(ObjectNotFound):
                found = client.read_deployment_by_name(name)
                for owner in _owners(found):
                    if _is_another(owner, found):
                        advice = "give those in prefect.yaml other names, or, if that one is to serve no more,"
                        raise UserError(
                            f"deployment {name} belongs to {owner}; {advice} `prefect deployment delete {name}`"
                        )


def check_definition(entrypoint: str) -> None:
    """In a run of a deployment: check that the deployment is as the project defines it.

    What a deployment says is never executed, so a run is refused if its deployment says more than the project.

    Args:
        entrypoint: entrypoint of the flow that runs.

    Raises:
        UserError: when the deployment has another entrypoint, or its own steps, path, storage or job variables.
    """
    if not deployment.id:
        return
    with get_client(sync_client=True) as client:
        found = client.read_deployment(UUID(deployment.id))
        run = client.read_flow_run(UUID(flow_run.id))
    foreign = {
        "entrypoint": found.entrypoint != entrypoint,
        "pull_steps": any(list(step) != [SET_FOLDER] for step in found.pull_steps or []),
        "path": found.path not in (None, "."),
        "storage_document_id": found.storage_document_id,
        "infrastructure_document_id": found.infrastructure_document_id,
        "job_variables": found.job_variables or run.job_variables,
    }
    if names := [name for name, is_foreign in foreign.items() if is_foreign]:
        raise UserError(
            f"deployment {flow_run.flow_name}/{found.name}: {', '.join(names)}: not as prefect.yaml defines it; "
            "nothing was run; start `make ui` again, or deploy it again"
        )


def _owners(deployment: DeploymentResponse) -> Iterator[_Owner]:
    for tag in deployment.tags:
        if found := re.fullmatch(r"([^:/]+):(/.*)", tag):
            yield _Owner(found[1], Path(found[2]))
    for step in deployment.pull_steps or []:  # from `prefect deploy`
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
