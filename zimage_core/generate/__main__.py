"""Draw many pictures from a file with a request in each line, or one picture by several processes.

python -m zimage_core.generate REQUESTS.jsonl OUT --model DIR
python -m zimage_core.generate REQUESTS.jsonl OUT --model DIR --ray HOST:PORT       over a Ray cluster
torchrun --nproc-per-node 2 -m zimage_core.generate REQUESTS.jsonl OUT --model DIR --split

A request: {"prompt": "a red fox"}; it may have id, negative, seed, size [width, height], steps, guidance,
loras {"file": strength} and image, an input picture. The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from ..acceleration.small_card import size_of
from ..cluster import Cluster
from ..train import distributed
from ..train.arguments import add_files, files_of
from ..train.terminal import Line, end_as_by_keys
from ..weights import WeightsError
from .batches import Batch
from .manifest import Manifest
from .over_cluster import Drawing
from .requests import read
from .worker import Drawn, Job, Worker

log = logging.getLogger("zimage_core.generate")

AGAIN = 3  # batches in a row that fail for want of memory, after which a run ends
VISION = ("siglip", "vision.safetensors")  # names in a model's folder
Results = Iterator[tuple[int, Batch, Drawn]]


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="python -m zimage_core.generate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    found.add_argument("requests", metavar="REQUESTS.jsonl", type=Path)
    found.add_argument("out", metavar="OUT", type=Path, help="folder of the pictures and manifest.jsonl")
    add_files(found)
    found.add_argument("--vision", type=Path, help="of omni weights, for input pictures")
    found.add_argument("--root", type=Path, help="folder of LoRAs and pictures (default: of REQUESTS.jsonl)")
    found.add_argument("--batch", type=int, default=4, help="pictures that are drawn together (default: 4)")
    found.add_argument("--device", help="(default: cuda where there is one, else cpu)")
    found.add_argument("--vram", help='draw in so much of the device, such as "6GB", streaming what is more')
    found.add_argument(
        "--ray", nargs="?", metavar="HOST:PORT", help="a Ray cluster; without an address, one on this machine"
    )
    found.add_argument("--workers", type=int, help="of the Ray cluster (default: one per GPU)")
    found.add_argument("--split", action="store_true", default=False, help="torchrun's processes share each")
    return found


def job_of(given: argparse.Namespace, device: str) -> Job:
    """Raises FileNotFoundError where a part of the model is missing."""
    files = files_of(given)
    vision = getattr(given, "vision", None)
    if vision is None and hasattr(given, "model"):
        vision = next((given.model / name for name in VISION if (given.model / name).exists()), None)
    for path in (*vars(files).values(), *filter(None, (vision,))):
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist: expected a part of the model")
    if hasattr(given, "vram"):
        size_of(given.vram)
    root = getattr(given, "root", given.requests.parent)
    if not root.is_dir():
        raise NotADirectoryError(f"--root {root} is no folder")
    return Job(
        type(files)(*(path.resolve() for path in vars(files).values())),
        vision and vision.resolve(),
        root.resolve(),
        device,
        getattr(given, "vram", None),
    )


def begun(given: argparse.Namespace, job: Job) -> Manifest:
    found = read(given.requests)
    if not found.requests:
        why = f"line {found.broken[0].line}: {found.broken[0].error}" if found.broken else "it is empty"
        raise ValueError(f"{given.requests} holds no request that can be drawn. {why[0].upper()}{why[1:]}")
    manifest = Manifest(given.out, found, given.batch, job.model)
    for broken in found.broken:
        log.warning("line %d: %s", broken.line, broken.error)
    left = sum(len(batch) for _, batch in manifest.todo)
    text = "%d requests, %d of them to draw; %d broken lines"
    log.info(text, len(found.requests), left, len(found.broken))
    if manifest.failed:
        log.warning("%d requests could not be drawn before: %s says why", manifest.failed, manifest.path)
    return manifest


def device_of(given: argparse.Namespace) -> str:
    """Raises ValueError for one that is not here."""
    device = getattr(given, "device", "cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=device).item()  # of "meta" there is none
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device} cannot be used here: {error}") from None
    return device


def by_one(given: argparse.Namespace) -> int:
    job = job_of(given, device_of(given))
    manifest = begun(given, job)
    try:
        return written(manifest, _drawn(job, manifest.todo)) if manifest.todo else 0
    finally:
        manifest.close()


def _drawn(job: Job, todo: Sequence[tuple[int, Batch]]) -> Results:
    worker = Worker(job)
    for number, batch in todo:
        yield number, batch, worker.draw(batch)


def by_ray(given: argparse.Namespace) -> int:
    device = getattr(given, "device", None)
    job_of(given, "cpu")  # what is wrong there is said before a cluster is asked for
    cluster = Cluster(given.ray)
    try:
        room = cluster.room(getattr(given, "workers", None), device)
        job = job_of(given, room.device)
        manifest = begun(given, job)
        try:
            found = cluster.results(Drawing(job), manifest.todo, room)
            return written(manifest, ((*item, drawn) for item, drawn in found))
        finally:
            manifest.close()
    finally:
        cluster.close()


def by_all(given: argparse.Namespace) -> int:
    """The first process reads and writes; all draw the batches that it names."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        raise ValueError("--split: start it by torchrun --nproc-per-node N -m zimage_core.generate ...")
    device, manifest = device_of(given), None
    try:
        group = distributed.join(device)
        if not group.first:
            logging.getLogger().setLevel(logging.ERROR)
        job = job_of(given, str(group.device))
        manifest = begun(given, job) if group.first else None
        sent = [manifest.todo if manifest else None]
        dist.broadcast_object_list(sent)
        _alike(job)
        worker = Worker(job, split=True)
        drawn = ((number, batch, worker.draw(batch)) for number, batch in sent[0])
        if manifest:
            return written(manifest, drawn)
        for _ in drawn:
            pass
        return 0
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        why = str(error).strip().split("\n")[0]
        raise RuntimeError(
            f"this process failed, or one that it waits for: {why} The same command goes on from there"
        ) from error
    finally:
        if manifest:
            manifest.close()
        distributed.leave()


def _alike(job: Job) -> None:
    """Raises ValueError, in all processes, where one would draw with something else than the others."""
    own = {"the model's files": job.model, "--vram": job.vram, "torch": torch.__version__}
    found: list[dict] = [{}] * dist.get_world_size()
    dist.all_gather_object(found, own)
    for name in own:
        if len({each[name] for each in found}) > 1:
            each = ", ".join(f"{rank}: {facts[name]}" for rank, facts in enumerate(found))
            raise ValueError(f"{name}: the processes have others ({each}). All need the same")


def written(manifest: Manifest, results: Results) -> int:
    """Writes what comes and says how far it is. Gives the command's exit code."""
    total, done, failed, line = sum(len(batch) for _, batch in manifest.todo), 0, 0, Line()
    again: list[str] = []
    in_a_row, since, first = 0, 0.0, 0  # the model is loaded when the first batch is done
    for number, batch, drawn in results:
        if drawn.again:
            again.append(drawn.again)
            in_a_row += 1
            if in_a_row == AGAIN:
                break
            continue
        in_a_row = 0
        manifest.record(number, batch, drawn.pictures, drawn.error)
        done += len(batch)
        if drawn.error:
            failed += len(batch)
            log.warning("%s: %s", ", ".join(request.id for request in batch), drawn.error)
        text = f"{done} of {total}"
        if first:
            rate = (done - first) / max(time.monotonic() - since, 1e-9)
            left = int((total - done) / rate)
            hours = f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}"  # of days, too
            text += f", {rate:.2f} pictures/s, {hours} left"
        else:
            since, first = time.monotonic(), done
        line.say(text, done == total)
    if failed:
        log.warning("%d requests could not be drawn: %s says why", failed, manifest.path)
    if again:
        log.error(
            "%d of %d pictures are left, since batches did not succeed: %s. The same command tries them "
            "again; --vram streams a model that is too large.",
            total - done,
            total,
            again[-1].rstrip(". \n"),
        )
    return 1 if again else 0


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    end_as_by_keys()
    try:
        if given.batch < 1:
            raise ValueError(f"--batch {given.batch}: expected 1 or more")
        if not given.requests.exists() or given.requests.is_dir():
            raise FileNotFoundError(f"{given.requests} is no file: expected requests, one JSON object a line")
        if hasattr(given, "workers") and not hasattr(given, "ray"):
            raise ValueError("--workers is for --ray, which is not given")
        if given.split and hasattr(given, "ray"):
            raise ValueError("--split and --ray are two ways: choose one")
        if not given.split and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError("several processes need --split, by which they share each picture")
        code = by_all(given) if given.split else by_ray(given) if hasattr(given, "ray") else by_one(given)
    except torch.OutOfMemoryError as error:
        sys.stderr.write(f"the GPU is too small for the model, give --vram: {error}\n")
        return 1
    except (WeightsError, ValueError, OSError, RuntimeError, ImportError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("stopped: the same command goes on from there\n")
        return 130
    log.info("%s", given.out)
    return code


if __name__ == "__main__":
    sys.exit(main())
