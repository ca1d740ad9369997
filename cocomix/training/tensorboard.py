"""Log each step and the rows of the curve to TensorBoard, if `runtime().tensorboard` names a folder."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from cocomix.plumbing.errors import UserError, install
from cocomix.plumbing.runtime import runtime


@contextmanager
def tensorboard(task: str, step: int) -> Iterator[Callable[[Mapping[str, float | None]], None]]:
    """Yield a function that logs a row to `<folder>/<task>`; it does nothing if no folder is named.

    Args:
        step: the step from which the run resumes; later steps that a killed process logged are hidden.

    Raises:
        UserError: when TensorBoard is not installed.
    """
    folder = runtime().tensorboard
    if folder is None or runtime().rank != 0:
        yield lambda _: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(f"COCOMIX_TENSORBOARD needs tensorboard: {install('tensorboard')}") from None
    writer = SummaryWriter(str(folder / task), purge_step=step + 1)

    def add(row: Mapping[str, float | None]) -> None:
        for name, value in row.items():
            if name != "step" and value is not None:
                writer.add_scalar(name, value, int(row["step"] or 0))

    try:
        yield add
    finally:
        writer.close()
