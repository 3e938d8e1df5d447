"""What the check found missing in the cache is downloaded, with progress by the byte, and the models opened again."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tmerge_tui.engine.preflight.check import open_party
from tmerge_tui.engine.preflight.dequantise import is_packed, unpacked
from tmerge_tui.engine.preflight.finite import check_ends
from tmerge_tui.engine.preflight.lora_merge import merged
from tmerge_tui.engine.preflight.reference import reference_choice
from tmerge_tui.engine.prepared import Party, Prepared
from tmerge_tui.engine.progress import Progress
from tmerge_tui.errors import NumericsError
from tmerge_tui.events import Emit, Logged, StageFinished, Warned
from tmerge_tui.hub.download import download
from tmerge_tui.hub.listing import Listing
from tmerge_tui.hub.locate import Located
from tmerge_tui.hub.manifest import ADAPTER
from tmerge_tui.models.pair import Pair
from tmerge_tui.recipe import ModelChoice, Recipe

STAGE = "download"
LABEL = "Fetch the models"
SHARE = 0.25  # of the whole run, as the progress bar weighs it


def needs_stage(recipe: Recipe) -> bool:
    """Whether a model comes from the Hub, or is an adapter: only then is there anything to announce."""

    def packed(folder: Path) -> bool:
        return is_packed(Located(str(folder), folder, None))

    def whole(choice: ModelChoice) -> bool:
        folder = Path(choice.model).expanduser()
        return choice.is_folder and folder.is_dir() and not (folder / ADAPTER).is_file() and not packed(folder)

    reference = reference_choice(recipe)
    return not all(whole(one) for one in (recipe.source, recipe.target, reference) if one is not None)


def download_models(prepared: Prepared, emit: Emit) -> Prepared:
    """`prepared` with all weights on this disk, and adapters merged onto their bases.

    A killed download goes on where it was. Raises ModelError, StorageError; NumericsError for weights of embeddings,
    last norm or head that are not finite, of the target or of a teacher; of any other source it is only said.
    """
    prepared = _brought(prepared, emit)
    check_ends(prepared.target)
    try:
        check_ends(prepared.source)
    except NumericsError as error:
        adaptation = prepared.recipe.adaptation
        if adaptation is not None and adaptation.distilled:
            raise
        # its activations do not pass there; if they do, extraction names the tensor
        emit(Warned("check", f"source: {error.found}: its score will be empty"))
    return prepared


def _brought(prepared: Prepared, emit: Emit) -> Prepared:
    if not needs_stage(prepared.recipe):
        return prepared
    source, target, *others = _here([prepared.source, prepared.target, *_own(prepared.reference)], emit)
    return replace(prepared, source=source, target=target, reference=others[0] if others else None)


def brought(models: Pair[Party], emit: Emit) -> Pair[Party]:
    """Both models with their weights on this disk, adapters merged and what is quantised unpacked."""
    source, target = _here([models.source, models.target], emit)
    return Pair(target=target, source=source)


def _own(party: Party | None) -> list[Party]:
    return [] if party is None else [party]


def _here(parties: Sequence[Party], emit: Emit) -> list[Party]:
    pending = {(listing.folder, listing.file): listing for party in parties for listing in party.located.downloads}
    if pending:
        _fetch(list(pending.values()), emit)
    elif all(party.located.whole for party in parties):
        emit(StageFinished(STAGE, 0.0, "cached"))
    return [_whole(party, emit) for party in parties]


def _whole(party: Party, emit: Emit) -> Party:
    located, trust = party.located, party.facts.trust_remote_code
    if located.base is not None and not located.whole:
        emit(Logged("info", f"merging the adapter {located.name} onto {located.base.name}"))
        located = merged(replace(located, pending=None, base=replace(located.base, pending=None)), trust)
    elif located.packed is not None and not located.unpacked:
        located = _unpacked(party, emit)
    elif located.pending is None:
        return party
    return open_party(party.role, replace(located, pending=None), trust)


def _unpacked(party: Party, emit: Emit) -> Located:
    total, label = party.facts.bytes_on_disk, f"Unpacking the weights of {party.facts.label}"
    with Progress(emit, STAGE, label, total, "bytes") as progress:

        def advance(count: int, fresh: bool) -> None:
            (progress.advance if fresh else progress.skip)(count)

        return unpacked(replace(party.located, pending=None), party.facts.trust_remote_code, advance)


def _fetch(listings: list[Listing], emit: Emit) -> None:
    files = [file for listing in listings for file in listing.missing]
    names = " and ".join(listing.name for listing in listings)
    lock, arrived = threading.Lock(), 0
    with Progress(emit, STAGE, f"Downloading {names}", sum(file.size for file in files), "bytes") as progress:

        def note() -> str:
            return f"{arrived} of {len(files)} files"

        def advance(count: int, fresh: bool) -> None:
            with lock:  # several files at a time
                if fresh:
                    progress.advance(count, note())
                else:
                    progress.skip(count)

        def count_file(path: str) -> None:
            nonlocal arrived
            with lock:
                arrived += 1
                progress.advance(0, note())

        for listing in listings:
            download(listing, advance, count_file)
