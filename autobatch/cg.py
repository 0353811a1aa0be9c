"""The current graph and the settings: `renew_cg`, checkpoints, `configure`, and how much memory is held."""

from __future__ import annotations

import dataclasses
from typing import Any

from autobatch import graph as graphs
from autobatch.background import wait as wait_for_background
from autobatch.cuda import memory as on_card
from autobatch.devices import check_device
from autobatch.execute import execution_of
from autobatch.graph import SETTINGS, Checkpoint, Graph, check_dtype, check_policy, current_graph
from autobatch.kernels._errors import ArgumentError
from autobatch.memory import free_pool, pooled
from autobatch.params.storage import changed
from autobatch.schedule import forget
from autobatch.threads import set_count


def renew_cg(immediate_compute: bool = False, check_validity: bool = False, autobatching: bool | str | None = None) -> Graph:
    """Drop the current graph of this thread and begin a new one.

    Parameters
    ----------
    immediate_compute : compute each node when it is recorded (to find an error at its line; slow).
    check_validity : with it, raise NumericalError at the first node that holds NaN or infinity.
    autobatching : False runs the graph node by node, True batches it by the default policy, a name by that policy; None: as
        configured.

    Returns
    -------
    Graph : the new graph. Expressions of the old one are stale from now on.
    """
    policy = None
    if isinstance(autobatching, str):
        policy = check_policy(autobatching)
    elif autobatching is not None:
        configured = SETTINGS.policy if SETTINGS.policy != "none" else "ratio"
        policy = configured if autobatching else "none"
    graph = graphs.new_current_graph(policy)
    if immediate_compute:
        graph.immediate = True
        if check_validity:
            graph.check_nan = graph.check_infinity = True
        graph.seal()
    return graph


def cg() -> Graph:
    """Return the current graph of this thread."""
    return current_graph()


def cg_version() -> int:
    """Return how many times this thread called `renew_cg`."""
    return graphs.graph_version()


def cg_checkpoint() -> None:
    """Compute everything recorded so far and set a mark to which `cg_revert` returns; marks nest."""
    graph = current_graph()
    if len(graph):
        execution = execution_of(graph)
        execution.keep(graph)
        execution.forward(graph, len(graph) - 1)
    marks = (
        *(len(graph.recorded_types), graph.count_args(), len(graph.input_addresses)),
        *(dict(graph.numbers), dict(graph.zeros), dict(graph.kept), graph.top),
    )
    checkpoint = Checkpoint(graph, marks)
    graph.top.types = graph.top.args = None
    if not graph.immediate:
        checkpoint.types, checkpoint.args = graph.recorded_types, graph.recorded_args
    graph.checkpoints.append(checkpoint)
    graph._top = checkpoint


def cg_revert() -> None:
    """Drop what was recorded after the last mark, and the mark; without a mark nothing happens.

    Expressions made after the mark are stale (DyNet does not notice: it uses their numbers for other nodes).
    """
    graph = current_graph()
    if not graph.checkpoints:
        return
    checkpoint = graph.checkpoints.pop()
    nodes, args, inputs, numbers, zeros, kept, below = checkpoint.marks
    checkpoint.drop()
    if graph.execution is not None:
        graph.execution.cut(nodes, args)
    del graph.recorded_types[nodes:]
    graph.cut_args(args)
    graph.drop_inputs(inputs)
    graph.numbers, graph.zeros, graph.kept = numbers, zeros, kept
    graph._top = None if below is graph else below
    if not graph.immediate:
        below.types, below.args = graph.recorded_types, graph.recorded_args


def configure(
    *,
    policy: str | None = None,
    dtype: str | None = None,
    check_nan: bool | None = None,
    inference: bool | None = None,
    background: bool | None = None,
    threads: int | None = None,
    device: str | None = None,
    matmul_precision: str | None = None,
) -> None:
    """Set what new graphs and parameter collections take as their defaults; what is not named stays as it is.

    Parameters
    ----------
    policy : "ratio" (the default), "agenda", "depth", or "none" for node by node.
    dtype : "float32" (the default) or "float64".
    check_nan : whether each forward pass looks for NaN and names the node where the first came up.
    inference : whether new graphs give values up as soon as nothing needs them, see `inference`.
    background : whether `backward`, and an update behind it, return before they are done (the default) and run
        while the program records on; whoever asks for what they change waits. See `docs/background.md`.
    threads : how many run a graph on the processor, and may work on a product of NumPy's and SciPy's in this process. At first
        as many as there are cores, or as OPENBLAS_NUM_THREADS (or its like of another BLAS) says; at most 16 run a graph.
    device : "cpu" (the default) or "cuda", for graphs that have not been evaluated yet, see `docs/cuda.md`; needs
        ``pip install "autobatch-numba[cuda]"``.
    matmul_precision : of products of float32 on a card: "float32" (the default), or "tf32", which keeps 10 bits of each factor.

    Raises
    ------
    ArgumentError : a value that none of these take; nothing is changed then.
    DeviceError : there is no such device; says what is missing. Nothing is changed then.
    NumericalError : from `wait`, where `background`, `threads` or `device` is given. Nothing is changed then.
    """
    if matmul_precision is not None and matmul_precision not in ("float32", "tf32"):
        raise ArgumentError(f"matmul_precision is {matmul_precision!r}\n  expected  'float32' or 'tf32'")
    if policy is not None:
        check_policy(policy)
    if dtype is not None:
        dtype = check_dtype(dtype)
    if device is not None:
        device = check_device(device)
    if threads is not None or device is not None or background is not None:
        wait_for_background()
    if threads is not None:
        set_count(threads)
    if device is not None and device != SETTINGS.device:
        SETTINGS.device = device
        changed()  # tables of trainers are those of a device
    if matmul_precision is not None:
        SETTINGS.matmul_precision = matmul_precision
    if policy is not None:
        SETTINGS.policy = policy
    if dtype is not None:
        SETTINGS.dtype = dtype
    if check_nan is not None:
        SETTINGS.check_nan = bool(check_nan)
    if background is not None:
        SETTINGS.background = bool(background)
    if inference is not None:
        SETTINGS.inference = bool(inference)


def configured() -> dict[str, Any]:
    """Return the present settings by name."""
    return dataclasses.asdict(SETTINGS)


def wait() -> None:
    """Return when all that was begun is done: backward and updates in the background, and on a card if graphs run there.

    Nothing needs this but a clock, or a program that wants to hear of a bad gradient here: whoever asks for numbers waits.

    Raises
    ------
    NumericalError : the norm of the gradients of the last update is not finite; it changed nothing.
    """
    wait_for_background()
    if SETTINGS.device == "cuda":
        on_card.synchronize()


def memory() -> dict[str, int]:
    """Return the bytes that the current graph of this thread uses and holds, by purpose, and what is kept for the next one.

    Of a graph on a card these are bytes of the card, but for inputs. `card_pool` is what is kept there.
    """
    wait_for_background()  # until then memory of dropped graphs is not in the pool
    graph = current_graph()
    held = {} if graph.execution is None else graph.execution.memory()
    return {
        **held,
        "inputs_reserved": sum(c.nbytes for c in graph.input_chunks),
        "pool": pooled(),
        "card_pool": on_card.pooled(),
    }


def free_memory() -> None:
    """Give the memory kept for the next graph of this thread back to the system, and to the card."""
    wait_for_background()
    free_pool()
    on_card.free_pool()
    forget()
