"""What a forward of the whole model in bfloat16 should take on a card, predicted without one.

The networks run on the meta device (bench.called), where ours takes the path that it takes on CUDA with all
optional packages; --plain hides those. Every operator that is really called takes the longest of a launch,
its bytes and its FLOPs at the rates of bench.rates. Nothing overlaps, and the card never waits for the
processor that launches: at small sizes real forwards take longer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from bench import called, limits, streamed
from bench.called import AGAIN, DIFFUSERS, IN_HOST, NATIVE, NEW, OURS, SIZES, Calls
from bench.networks import CAPTION
from bench.operators import ATTENTION, OTHER, PRODUCT, TORCH_CHOOSES, Operator
from bench.rates import CARDS, H200, Card
from bench.rows import prediction
from tests.host import inside
from zimage_core import S3DiTConfig

Found = dict[tuple[str, int, str], Calls]  # by network, size and step
CONFIG = S3DiTConfig()
ON_EVERY_CARD = 1024
NAMES = {"cudnn": "cuDNN", "flash": "FA2", "efficient": "efficient attention", "math": "unfused attention"}
NETWORKS = (OURS, IN_HOST, NATIVE, DIFFUSERS)
IN_A_HOST = (IN_HOST, NATIVE)
LIMIT = "limit"
EIGHT_BITS = ("float8_e4m3fn", "int8")  # by preference; a card's rates include the scaling of what comes in
COMPARED = ((IN_HOST, NATIVE), (IN_HOST, DIFFUSERS), (OURS, DIFFUSERS), (IN_HOST, LIMIT), (OURS, LIMIT))


def counted(plain: bool) -> tuple[str, Found]:
    """The host's version, and what each network calls; in a process of the host's own."""
    answer = inside.run(called.__file__, *(["--plain"] if plain else []))
    return answer["version"], {
        (one["network"], one["size"], one["step"]): Counter({Operator(*o): n for *o, n in one["calls"]})
        for one in answer["found"]
    }


def flash_first(calls: Calls) -> Calls:
    """What is left to torch goes to FlashAttention 2.

    Hosts put it first from some version between 0.3.75 and 0.33.0 on.
    """
    return Counter({o._replace(by="flash" if o.by == TORCH_CHOOSES else o.by): n for o, n in calls.items()})


def milliseconds(card: Card, calls: Calls, kind: str | None = None) -> float:
    return 1000 * sum(n * card.seconds(o) for o, n in calls.items() if kind in (None, o.kind))


def attention_of(card: Card, calls: Calls) -> str:
    kernels = sorted({NAMES[card.kernel(o)] for o in calls if o.kind == ATTENTION})
    return "attention by " + " and ".join(kernels)


def limit(card: Card, pixels: int) -> float:
    """Milliseconds of the products and the attention alone, at the best rates, the caption refined before."""
    products, attention = limits.forward(CONFIG, limits.tokens(CONFIG, pixels), CAPTION)
    return (products / card.products["bfloat16"] + attention / max(card.attention.values())) / 1e9


def check(calls: Calls, pixels: int) -> None:
    """A product inside an operator without a formula would count as nothing."""
    found = [sum(n * o.flops for o, n in calls.items() if o.kind == kind) for kind in (PRODUCT, ATTENTION)]
    least = limits.forward(CONFIG, limits.tokens(CONFIG, pixels), CAPTION)
    if any(a < b for a, b in zip(found, least, strict=True)):
        raise RuntimeError(
            f"{pixels}x{pixels}: {found} FLOPs of products and attention counted, the formula has {least}. "
            "Give the operator that does the rest one, by torch.utils.flop_counter.register_flop_formula."
        )


def in_eight_bits(card: Card, calls: Calls, pixels: int) -> Calls | None:
    """The same with the blocks' products in fp8, or in int8 where a card has no fp8; None: it has neither."""
    kind = next((kind for kind in EIGHT_BITS if kind in card.products), None)
    least = 2 * limits.tokens(CONFIG, pixels) * CONFIG.dim**2  # of a block's smallest
    return kind and Counter(
        {o._replace(by=kind) if o.kind == PRODUCT and o.flops >= least else o: n for o, n in calls.items()}
    )


class Predictions:
    """Rows of one card at one size."""

    def __init__(self, card: Card, pixels: int, found: Found, host: str, plain: bool) -> None:
        self.card, self.pixels, self.host = card, pixels, host
        self.label = f"{card.name}, {pixels}x{pixels}" + (", plain" if plain else "")
        self.here = {(name, step): calls for (name, size, step), calls in found.items() if size == pixels}
        self.asked = {k: flash_first(calls) if k[0] in IN_A_HOST else calls for k, calls in self.here.items()}

    def row(self, name: str, value: float, unit: str = "ms", against: str = "") -> dict:
        return prediction(f"{self.label}, {name}", value, unit, against)

    def total(self, name: str, calls: Calls, more: str = "") -> dict:
        host = f"{self.host}, " if name.startswith(IN_A_HOST) else ""
        against = host + attention_of(self.card, calls) + more
        return self.row(f"{name}: forward", milliseconds(self.card, calls), "ms", against)

    def parts(self, name: str, calls: Calls) -> Iterator[dict]:
        yield self.total(name, calls)
        for kind in (PRODUCT, ATTENTION, OTHER):
            yield self.row(f"{name}: {kind}", milliseconds(self.card, calls, kind))
        yield self.row(f"{name}: operators in {OTHER}", others(calls), "")

    def of_networks(self) -> Iterator[dict]:
        """A later step of a run in each network, with a sigma that it has not seen."""
        yield self.row(f"{LIMIT}: matrix products and attention", limit(self.card, self.pixels))
        for name in NETWORKS:
            yield from self.parts(name, self.asked[name, NEW])

    def of_variants(self) -> Iterator[dict]:
        """With the last sigma again, as in guided steps; and the attention that a host leaves to torch."""
        for name in (OURS, IN_HOST):
            calls = self.asked[name, AGAIN]
            yield self.total(f"{name}, {AGAIN}", calls)
            yield self.row(f"{name}, {AGAIN}: {OTHER}", milliseconds(self.card, calls, OTHER))
            yield self.row(f"{name}, {AGAIN}: operators in {OTHER}", others(calls), "")
        for name in IN_A_HOST:
            calls = self.here[name, NEW]
            if attention_of(self.card, calls) != attention_of(self.card, self.asked[name, NEW]):
                more = ", torch's choice, to which this host leaves it"
                yield self.total(f"{name}, torch's attention", calls, more)

    def of_eight_bits(self) -> Iterator[dict]:
        """Z-Image Speed's 8-bit, against the host's own in bfloat16."""
        calls = in_eight_bits(self.card, self.asked[IN_HOST, NEW], self.pixels)
        if calls is not None:
            name = f"{IN_HOST}, 8-bit"
            yield self.total(name, calls)
            ratio = milliseconds(self.card, calls) / milliseconds(self.card, self.asked[NATIVE, NEW])
            yield self.row(f"{name} / {NATIVE}", ratio, "x", NATIVE)

    def totals(self) -> Iterator[dict]:
        yield self.row(f"{LIMIT}: matrix products and attention", limit(self.card, self.pixels))
        for name in NETWORKS:
            yield self.total(name, self.asked[name, NEW])

    def ratios(self) -> Iterator[dict]:
        times = {name: milliseconds(self.card, self.asked[name, NEW]) for name in NETWORKS}
        times[LIMIT] = limit(self.card, self.pixels)
        for ours, peer in COMPARED:
            yield self.row(f"{ours} / {peer}", times[ours] / times[peer], "x", peer)


def others(calls: Calls) -> int:
    return sum(n for o, n in calls.items() if o.kind == OTHER)


def run(plain: bool = False) -> Iterator[dict]:
    version, found = counted(plain)
    for (name, size, _), calls in found.items():
        if name in (OURS, IN_HOST):
            check(calls, size)
    for size in SIZES:
        rows = Predictions(H200, size, found, f"ComfyUI {version}", plain)
        yield from (*rows.of_networks(), *rows.of_variants(), *rows.ratios(), *rows.of_eight_bits())
    for card in CARDS:
        if card is not H200:
            rows = Predictions(card, ON_EVERY_CARD, found, f"ComfyUI {version}", plain)
            yield from (*rows.totals(), *rows.ratios(), *rows.of_eight_bits())
        alone = milliseconds(card, found[OURS, ON_EVERY_CARD, NEW]) / 1000
        yield from streamed.predicted(card.name + (", plain" if plain else ""), card.bus, alone)
