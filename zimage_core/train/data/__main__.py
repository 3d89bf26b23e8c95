"""Look at a folder of pictures before training on it.

python -m zimage_core.train data DIR [--out DIR]
python -m zimage_core.train data DIR --ray [HOST:PORT] [--workers N]     over a Ray cluster
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ...cluster import Cluster, ClusterError
from ...prompt.endpoint_settings import EndpointError, read_endpoints
from ...weights import WeightsError
from .. import parts
from ..run import Parts
from ..terminal import end_as_by_keys
from . import concepts, curate
from .caption_match import CaptionJudge
from .captioners import EndpointCaptioner, LocalCaptioner, destination
from .captions import LANGUAGES, CaptionError, caption_all, difference
from .curate import Draw
from .each_picture import Map, one_by_one
from .inspection import ALL_KINDS, Plan, Progress, inspect
from .model_probe import PROMPTS, drawn_by, nearest, questions
from .over_cluster import ModelJudge, OverCluster
from .picture_files import PictureError, open_picture
from .picture_look import Embed, VisionEmbedder
from .profile import Thresholds
from .records import DataError, DataSet, PictureRecord
from .report import Report, contact_sheet
from .store import load, write

log = logging.getLogger("zimage_core.train.data")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m zimage_core.train data",
        description="Look at pictures before training on them: what to leave out and why, and rare things.",
        epilog="Writes data.jsonl (which the trainer reads), report.txt, report.json and sheet.jpg.",
        allow_abbrev=False,
    )
    parser.add_argument("source", type=Path, help="a folder with .txt files, a .jsonl, or musubi's .toml")
    parser.add_argument("--out", type=Path, help="where to write (default: the source's name with -data)")
    parser.add_argument("--side", type=int, default=Thresholds.side, help="least pixels of the shorter side")
    parser.add_argument(
        "--keep", action="append", default=[], choices=ALL_KINDS, help="name this kind, do not drop it"
    )
    parser.add_argument(
        "--skip", action="append", default=[], choices=("text", "duplicates"), help="do not look for this"
    )
    parser.add_argument("--links", type=Path, help='JSON of parents by concept: {"fox": ["animal"]}')
    parser.add_argument("--weights", action="store_true", help="weigh pictures: rare things count more")
    parser.add_argument("--captions", action="store_true", help="clean captions, or write new ones")
    parser.add_argument("--captioner", type=Path, help="the folder of a vision-language model (transformers)")
    parser.add_argument("--endpoint", help='a chat server that has "pictures": true in --endpoints')
    parser.add_argument("--endpoints", type=Path, help="the owner's file of chat servers")
    parser.add_argument("--language", action="append", choices=LANGUAGES, help="of captions (default: en)")
    parser.add_argument("--pairs", type=Path, help="jsonl of before and after: each gets an instruction")
    parser.add_argument("--model", type=Path, help="a model's folder: do captions fit, by its own judgement?")
    parser.add_argument("--ask", action="store_true", help="let --model draw the things of --links")
    parser.add_argument("--pool", type=Path, help="with --ask: more pictures, for what it does not draw")
    parser.add_argument("--each", type=int, default=8, help="... so many of each thing")
    parser.add_argument("--model-side", type=int, default=512, help="pixels of a side at which it judges")
    parser.add_argument("--vision", type=Path, help="SigLIP 2's vision encoder, to find more copies")
    parser.add_argument(
        "--ray",
        nargs="?",
        metavar="HOST:PORT",
        default=argparse.SUPPRESS,
        help="a Ray cluster that does it; without an address, one on this machine",
    )
    parser.add_argument("--workers", type=int, help="with --ray: how many (default: one per CPU)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """0, or 1 with an error that says what to do; 130 where it was stopped."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = parser().parse_args(arguments)
    end_as_by_keys()
    try:
        return run(options)
    except (
        DataError, CaptionError, ClusterError, EndpointError, PictureError, WeightsError, OSError,
    ) as error:  # fmt: skip
        log.error("%s", error)
        return 1
    except KeyboardInterrupt:
        log.error("stopped")
        return 130


def run(options: argparse.Namespace) -> int:
    source = options.source
    out = options.out or source.with_name(f"{source.stem if source.is_file() else source.name}-data")
    captioner = chosen_captioner(options)  # before the pictures: it may be none
    if options.pairs:
        if hasattr(options, "ray"):
            raise DataError("--pairs are gone through by one process: leave out --ray")
        return instruct(options.pairs, captioner, out, (options.language or ["en"])[0])
    data = load(source)
    log.info("%d pictures in %s", len(data.records), source)
    if options.ask and not (options.model and options.vision and options.links):
        raise DataError("--ask needs --model that draws, --vision that looks, and --links that names things.")
    with way_over(options) as over:
        return looked_at(data, options, captioner, out, over)


@contextlib.contextmanager
def way_over(options: argparse.Namespace) -> Iterator[Map]:
    """How pictures are gone through. Raises ClusterError."""
    if not hasattr(options, "ray"):
        if options.workers is not None:
            raise ClusterError("--workers is for --ray, which is not given")
        yield one_by_one
        return
    cluster = Cluster(options.ray)
    try:
        models = options.model or (options.captions and options.captioner)
        yield OverCluster(cluster, options.workers, bool(models))
    finally:
        cluster.close()


def looked_at(
    data: DataSet,
    options: argparse.Namespace,
    captioner: LocalCaptioner | EndpointCaptioner | None,
    out: Path,
    over: Map,
) -> int:
    """Look at the pictures and write what was found."""
    embed = VisionEmbedder(options.vision) if options.vision else None
    made, judge = None, None
    if options.model and (options.ask or over is one_by_one):
        made, variant = model_of(options.model)
        judge = CaptionJudge(made.model, made.encode, made.features, options.model_side)
    if options.model and over is not one_by_one:
        judge = ModelJudge(parts.files_in(options.model.resolve()), options.model_side)
    plan = Plan(
        Thresholds(side=options.side),
        keep=frozenset(options.keep),
        skip=frozenset(options.skip),
        embed=embed,
        judge=judge,
    )
    records, report = inspect(data, plan, over)
    if options.captions:
        records = with_captions(records, report, captioner, options.language or ["en"], over)
    links = concepts.read_links(options.links) if options.links else None
    records = with_concepts(records, report, links, options.weights)
    if options.ask:
        draw = drawn_by(made, variant, options.model_side)
        records = with_answers(records, report, links, draw, embed, options)
    out.mkdir(parents=True, exist_ok=True)
    write(records, out / "data.jsonl")
    (out / "report.json").write_text(report.as_json(), "utf-8")
    (out / "report.txt").write_text(report.text(), "utf-8")
    contact_sheet(records, report.found).save(out / "sheet.jpg", quality=88)
    log.info("%s", report.text().rstrip())
    log.info("data.jsonl, report.txt, report.json and sheet.jpg are in %s", out)
    return 0


def model_of(folder: Path) -> tuple[Parts, str]:
    """On the card where there is one. Raises FileNotFoundError or WeightsError for another folder."""
    made, variant = parts.from_files(parts.files_in(folder), device_here())
    made.place()
    return made, variant


def device_here() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def chosen_captioner(options: argparse.Namespace) -> LocalCaptioner | EndpointCaptioner | None:
    """Raises CaptionError or EndpointError."""
    if options.captioner:
        return LocalCaptioner(options.captioner, device_here())
    if not options.endpoint:
        return None
    if not options.endpoints:
        raise CaptionError("--endpoint needs --endpoints, the file that says where it is")
    endpoints = read_endpoints(options.endpoints)
    if options.endpoint not in endpoints:
        raise CaptionError(f"{options.endpoints} has no {options.endpoint!r} but {', '.join(endpoints)}")
    return EndpointCaptioner(endpoints[options.endpoint])


def with_captions(
    records: list[PictureRecord],
    report: Report,
    captioner: LocalCaptioner | EndpointCaptioner | None,
    languages: Sequence[str],
    over: Map,
) -> list[PictureRecord]:
    """Captions of the pictures that stay. A chat server is asked by this process alone."""
    if not isinstance(captioner, LocalCaptioner):
        over = one_by_one
    cluster = "" if over is one_by_one else "a Ray cluster"
    where = destination(captioner, sum(not record.drop for record in records), cluster)
    log.info("%s", where)
    progress = Progress("captions")
    records, problems = caption_all(records, captioner, languages, progress=progress, over=over)
    report.ran.append(f"captions: {where}")
    report.problems += problems
    return records


def instruct(
    pairs: Path, captioner: LocalCaptioner | EndpointCaptioner | None, out: Path, language: str
) -> int:
    """pairs.jsonl with an instruction for each pair of pictures."""
    if captioner is None:
        raise CaptionError("--pairs needs --captioner or --endpoint")
    rows = read_pairs(pairs)
    log.info("%s", destination(captioner, 2 * len(rows)))
    out.mkdir(parents=True, exist_ok=True)
    progress = Progress("pairs")
    with open(out / "pairs.jsonl", "w", encoding="utf-8") as file:
        for number, row in enumerate(rows):
            progress(number, len(rows))
            before, after = (open_picture(pairs.parent / row[side]) for side in ("before", "after"))
            told = {**row, "instruction": difference(captioner, before, after, language)}
            file.write(json.dumps(told, ensure_ascii=False) + "\n")
    log.info("%d instructions are in %s", len(rows), out / "pairs.jsonl")
    return 0


def read_pairs(file: Path) -> list[dict]:
    """Raises DataError naming the line."""
    rows = []
    for number, line in enumerate(file.read_text("utf-8-sig").splitlines(), 1):
        try:
            row = json.loads(line) if line.strip() else None
        except ValueError:
            row = False
        if row is None:
            continue
        sides = [row.get(side) for side in ("before", "after")] if isinstance(row, dict) else [None]
        if not all(isinstance(side, str) for side in sides):
            raise DataError(f"{file} line {number}: expected an object with the paths before and after.")
        rows.append(row)
    return rows


def with_concepts(
    records: list[PictureRecord], report: Report, links: concepts.Links | None, write_weights: bool
) -> list[PictureRecord]:
    """Tell what is rare among the pictures that stay, and weigh them by it where that is asked for."""
    stay = [record for record in records if not record.drop]
    found = concepts.find(stay, links)
    report.ran.append(f"{len(found.counts):,} concepts" + (" and weights" if write_weights else ""))
    report.missing += [f"PageRank of concepts: {found.missing}"] if found.missing else []
    report.sections["Concepts with the fewest pictures"] = {n: found.counts[n] for n in found.rarest()}
    if not write_weights or not stay:
        return records
    report.sections["Weights"] = {"least": min(found.weights), "most": max(found.weights)}
    weights = iter(found.weights)
    return [r if r.drop else replace(r, weight=r.weight * next(weights)) for r in records]


def with_answers(
    records: list[PictureRecord],
    report: Report,
    links: concepts.Links,
    draw: Draw,
    embed: Embed,
    options: argparse.Namespace,
) -> list[PictureRecord]:
    """More weight for what the model does not draw, and pictures of it from the pool."""
    stay = [record for record in records if not record.drop]
    found = concepts.find(stay, links)
    asked = questions(stay, found, links, embed)
    log.info("the model draws %d things, %d pictures each", len(asked.prompts), PROMPTS)
    shares = curate.probe(asked.prompts, draw, nearest(asked.centres, embed)) if asked.prompts else {}
    report.ran.append(f"{len(shares)} things asked of the model")
    wanted = curate.weak(shares)
    report.sections["Drawn, share of the pictures"] = {name: shares[name] for name in sorted(shares)}
    weights = iter(curate.raised([record.weight for record in stay], found.names, shares))
    records = [r if r.drop else replace(r, weight=next(weights)) for r in records]
    if options.pool and wanted:
        pool = load(options.pool).pictures
        known = [record.path for record in records]
        more = curate.retrieve(wanted, pool, concepts.find(pool, links), known, options.each)
        report.sections["Fetched from the pool"] = [f"{len(more):,} pictures of {', '.join(wanted)}"]
        records += more
    return records


if __name__ == "__main__":
    sys.exit(main())
