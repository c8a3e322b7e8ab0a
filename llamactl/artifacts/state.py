"""Training state: what it takes to go on as if nothing had happened (engine notes, "Training state").

``state/step-00000012/`` holds a safetensors file of a process's tensors and ``manifest.json``: the facts (step, data
position, counters, what was asked for) and each file's size and SHA-256, under a digest of its own. A state appears by
renaming a finished, synced directory; older ones are pruned after that. No pickle.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llamactl import ui
from llamactl.artifacts import files, manifest, tensors
from llamactl.errors import Fault

if TYPE_CHECKING:
    import torch

MANIFEST = "manifest.json"
TENSORS = "rank-00000.safetensors"


class State(NamedTuple):
    """Facts and tensors of one moment of a training."""

    facts: dict[str, Any]
    tensors: "dict[str, torch.Tensor]"


def save(directory: Path, step: int, state: "Mapping[str, torch.Tensor]", facts: Mapping[str, Any], keep: int) -> Path:
    """Write ``directory/step-...``, whole or not at all, then prune all but the newest ``keep``.

    States of later steps are pruned too: a run that stands at ``step`` has found them damaged.
    """
    directory.mkdir(exist_ok=True)
    place = directory / f"step-{step:08d}"
    with files.whole_directory(place) as partial:
        written = tensors.write(partial / TENSORS, state)
        listed = [{"path": TENSORS, **written._asdict()}]
        (partial / MANIFEST).write_bytes(manifest.dumps({**facts, "step": step, "files": listed}))
    states = _newest_first(directory)
    for other in [one for one in states if one > place] + [one for one in states if one <= place][keep:]:
        shutil.rmtree(other)
    return place


def load(directory: Path) -> State | None:
    """The newest state that is whole; a damaged one is named and passed over. None where there is none at all."""
    damaged: list[Fault] = []
    for place in _newest_first(directory):
        try:
            return _load(place)
        except Fault as fault:
            damaged.append(fault)
            ui.warn(f"state refused: {fault.subject}: {fault.problem}")
    if damaged:
        raise Fault(directory, "holds no state that is whole", "--no-resume to start over")
    return None


def _newest_first(directory: Path) -> list[Path]:
    return sorted(directory.glob("step-*"), reverse=True)


def _load(place: Path) -> State:
    facts = manifest.load_signed(place / MANIFEST)
    for file in facts["files"]:
        if not (place / file["path"]).is_file():
            raise Fault(place / file["path"], "is missing")
        if files.stamp(place / file["path"]) != (file["size"], file["sha256"]):
            raise Fault(place / file["path"], f"its bytes differ from what {MANIFEST} says")
    with tensors.opened(place / TENSORS, "pt") as opened:
        return State(facts, {name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118
