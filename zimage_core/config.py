"""Every number of the model family: dimensions, latent statistics, defaults of the official pipelines."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class S3DiTConfig:
    """Dimensions of the single-stream diffusion transformer.

    The defaults are Z-Image Turbo and Base, 6.15 B parameters.
    Raises ValueError when the sizes contradict each other, naming both numbers.
    """

    dim: int = 3840
    n_layers: int = 30
    n_refiner_layers: int = 2
    n_heads: int = 30
    n_kv_heads: int | None = None  # None: as many as n_heads
    ffn_dim: int | None = None  # None: 8/3 of dim
    in_channels: int = 16
    patch_size: int = 2
    cap_feat_dim: int = 2560
    norm_eps: float = 1e-5
    rope_theta: float = 256.0
    axes_dims: tuple[int, ...] = (32, 48, 48)  # rotary dimensions of frame, row and column
    t_scale: float = 1000.0
    t_hidden: int = 1024
    t_dim: int | None = None  # None: min(dim, 256), the width of the adaLN input
    pad_multiple: int = 32  # captions and images are padded to this with learned tokens, which are attended
    siglip_feat_dim: int | None = None  # 1152 in the omni models

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "n_kv_heads", self.n_kv_heads or self.n_heads)
        put(self, "ffn_dim", self.ffn_dim or int(self.dim / 3 * 8))
        put(self, "t_dim", self.t_dim or min(self.dim, 256))
        put(self, "axes_dims", tuple(self.axes_dims))
        if self.dim % self.n_heads:
            raise ValueError(f"dim {self.dim} is not a multiple of n_heads {self.n_heads}")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}")
        if sum(self.axes_dims) != self.head_dim:
            raise ValueError(
                f"axes_dims {self.axes_dims} add up to {sum(self.axes_dims)}, the head has {self.head_dim}"
            )
        if any(d % 2 for d in self.axes_dims):
            raise ValueError(f"axes_dims {self.axes_dims} must be even: rotary embedding turns pairs")

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    @property
    def patch_features(self) -> int:
        return self.patch_size**2 * self.in_channels

    @property
    def full_size(self) -> bool:
        """Whether it is Turbo, Base or an omni model, and no small one for trying and testing."""
        return (self.dim, self.n_layers) == (S3DiTConfig.dim, S3DiTConfig.n_layers)


@dataclass(frozen=True)
class ControlConfig:
    """A Z-Image-Fun-Controlnet-Union, for a transformer of the same widths.

    blocks: the sizes of its blocks; n_layers are its own. channels: 16 reads a control picture's latent, 33
    also a mask and the latent of a picture to repaint. routing: what refines the control tokens.
    "tokens", version 1.0: plain blocks, on the control tokens alone. "refiner", 2.1: control blocks beside
    the noise refiner, which gets their hints. "layers", 2.0: the layers themselves do that, once more before
    their own turn.
    """

    blocks: S3DiTConfig
    channels: int
    routing: str

    @property
    def inpaints(self) -> bool:
        return self.channels > self.blocks.in_channels

    @property
    def summary(self) -> str:
        version = {"tokens": "1.0", "layers": "2.0", "refiner": "2.1"}[self.routing]
        return f"version {version}, {self.blocks.n_layers} blocks{', can inpaint' if self.inpaints else ''}"

    def hint_layers(self, model: S3DiTConfig) -> tuple[int, ...]:
        """The layers of a transformer that get hints. Files do not say: all known ones are evenly spaced.

        Raises ValueError when the control was trained for another transformer.
        """
        ours, advice = self.blocks, "use a control that was trained for this transformer"
        for name in ("dim", "n_heads", "t_dim"):
            if getattr(ours, name) != getattr(model, name):
                raise ValueError(
                    f"this control is for a transformer with {name} {getattr(ours, name)}, this model has "
                    f"{getattr(model, name)}: {advice}"
                )
        if self.routing == "refiner" and ours.n_refiner_layers != model.n_refiner_layers:
            raise ValueError(
                f"this control steers {ours.n_refiner_layers} refiner blocks, this model has "
                f"{model.n_refiner_layers}: {advice}"
            )
        if model.n_layers % ours.n_layers:
            raise ValueError(
                f"this control has {ours.n_layers} blocks, which {model.n_layers} layers cannot take at even "
                f"distances: {advice}"
            )
        return tuple(range(0, model.n_layers, model.n_layers // ours.n_layers))


@dataclass(frozen=True)
class Qwen3Config:
    """Dimensions of the text encoder. The defaults are Qwen3-4B."""

    vocab_size: int = 151936
    hidden_size: int = 2560
    intermediate_size: int = 9728
    num_hidden_layers: int = 36
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int = 128
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1_000_000.0


@dataclass(frozen=True)
class AutoencoderConfig:
    """Dimensions of the Flux-style autoencoder. The defaults are the 16-channel one that Z-Image uses."""

    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    in_channels: int = 3
    z_channels: int = 16
    norm_groups: int = 32
    scaling_factor: float = 0.3611
    shift_factor: float = 0.1159

    @property
    def downscale(self) -> int:
        return 2 ** (len(self.ch_mult) - 1)


@dataclass(frozen=True)
class VisionConfig:
    """Dimensions of the omni weights' vision encoder. The defaults are SigLIP 2 so400m, patch 16, naflex."""

    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 27
    num_attention_heads: int = 16
    patch_size: int = 16
    max_num_patches: int = 256  # of a picture, and in the learned grid of positions


@dataclass(frozen=True)
class NanoConfig:
    """The small model that ships in `models/nano`, of the same classes and in the same file formats."""

    transformer: S3DiTConfig = field(
        default_factory=lambda: S3DiTConfig(
            dim=384,
            n_layers=4,
            n_refiner_layers=1,
            n_heads=3,
            cap_feat_dim=256,
            t_hidden=384,
            siglip_feat_dim=128,
        )
    )
    text_encoder: Qwen3Config = field(
        default_factory=lambda: Qwen3Config(
            vocab_size=2048,
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    )
    autoencoder: AutoencoderConfig = field(
        default_factory=lambda: AutoencoderConfig(ch=64, ch_mult=(1, 1, 2, 2), num_res_blocks=1)
    )
    vision: VisionConfig = field(
        default_factory=lambda: VisionConfig(
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_num_patches=16,
        )
    )
    resolution: int = 128  # pixels, square


TURBO_STEPS = 8
SHIFT = 3.0  # sigma' = shift * sigma / (1 + (shift - 1) * sigma)
REFERENCE_MAX_TOKENS = 512  # the reference pipeline cuts the templated prompt here
REFERENCE_AREA = 1024 * 1024  # pixels; a larger reference image is made as small
LATENT_DOWNSCALE = 8  # pixels per latent cell
SIZE_MULTIPLE = 16  # the autoencoder's 8 x the patch size 2

# Width x height of the official sizes, and the nano model's.
_LANDSCAPE = {
    "1024": ((1152, 896), (1152, 864), (1248, 832), (1280, 720), (1344, 576)),
    "1280": ((1440, 1120), (1472, 1104), (1536, 1024), (1536, 864), (1680, 720)),
    "1536": ((1728, 1344), (1728, 1296), (1872, 1248), (2048, 1152), (2016, 864)),
}
SIZE_BUCKETS = {
    f"{width}x{height}": (width, height)
    for square, landscapes in _LANDSCAPE.items()
    for width, height in ((int(square), int(square)), *landscapes, *((h, w) for w, h in landscapes))
} | {"128x128 (nano)": (128, 128)}
