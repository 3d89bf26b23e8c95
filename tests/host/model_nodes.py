"""Every node of the host that takes and gives a MODEL: with what inputs it is tried, and what it does there.

Inputs are values, or what makes one: (graph, the MODEL) -> a link. Those that are not named are made by their
type, else they are the node's defaults.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.host.matrix import LONG, SHORT, Graph, Link

Inputs = dict[str, object]

PACK = "stand_ins.py"  # what nodes want of other families of models
BY_TYPE: dict[str, Callable[[Graph], Link]] = {
    "VAE": lambda g: g.vae,
    "CLIP": lambda g: g.clip,
    "CONDITIONING": lambda g: g.prompt(LONG),
    "LATENT": lambda g: g.empty(),
    "IMAGE": lambda g: g.add("EmptyImage", width=64, height=64, batch_size=1, color=0x20C030),
}


def stand_in(kind: str) -> Callable[[Graph, Link], Link]:
    return lambda g, model: g.add("StandIn", kind=kind)


def masked(g: Graph, model: Link) -> Link:
    mask = g.add("SolidMask", value=0.4, width=64, height=64)
    encoded = g.add("VAEEncode", pixels=BY_TYPE["IMAGE"](g), vae=g.vae)
    return g.add("SetLatentNoiseMask", samples=encoded, mask=mask)


LORA = {"lora_name": "comfy_fused.safetensors", "strength_model": 1.0}
WHOLE_RUN = {"start_percent": 0.0, "end_percent": 1.0}
WINDOWS = {"context_overlap": 1, "context_schedule": "standard_static", "freenoise": False}
CACHE = {"reuse_threshold": 3.0, "start_percent": 0.1}
FREE_U = {"b1": 1.5, "b2": 1.6, "s1": 0.5, "s2": 0.2}
ATTENTION = {"q": 1.5, "k": 0.5, "v": 2.0, "out": 0.5}

# The same change on ours as on the host's own network.
CHANGES: dict[str, Inputs] = {
    "APG": {"eta": 0.5, "norm_threshold": 2.0, "momentum": -0.5},
    "CFGNorm": {"strength": 0.7},
    "CFGOverride": {"cfg": 4.0, "end_percent": 0.6},
    "CFGZeroStar": {},
    "ContextWindowsManual": {**WINDOWS, "context_length": 5, "dim": 3},
    "DifferentialDiffusion": {"strength": 0.8},
    "EasyCache": CACHE,
    "Epsilon Scaling": {"scaling_factor": 1.2},
    "FreSca": {"scale_low": 1.3, "scale_high": 0.6, "freq_cutoff": 2},
    "HiDreamO1PatchSeamSmoothing": {"start_percent": 0.0, "pattern": "symmetric"},
    "LTXVContextWindows": {**WINDOWS, "context_length": 33},
    "LatentApplyOperationCFG": {
        "operation": lambda g, m: g.add("LatentOperationTonemapReinhard", multiplier=0.5)
    },
    "LazyCache": CACHE,
    "LoraLoader": LORA,
    "LoraLoaderBypass": LORA,
    "LoraLoaderBypassModelOnly": LORA,
    "LoraLoaderModelOnly": LORA,
    "LoraModelLoader": {"lora": stand_in("lora"), "strength_model": 0.7},
    "Mahiro": {},
    "MiniMaxH3SigmaShift": {"shift_video": 6.0},
    "ModelNoiseScale": {"noise_scale": 1.3},
    "ModelSamplingAuraFlow": {"shift": 6.0},
    "ModelSamplingContinuousEDM": {"sampling": "v_prediction", "sigma_max": 20.0},
    "ModelSamplingContinuousV": {"sigma_max": 100.0},
    "ModelSamplingDiscrete": {"sampling": "lcm", "zsnr": True},
    "ModelSamplingFlux": {"max_shift": 1.3},
    "ModelSamplingLTXV": {},
    "ModelSamplingSD3": {"shift": 6.0},
    "ModelSamplingStableCascade": {"shift": 2.0},
    "PerpNeg": {"empty_conditioning": lambda g, m: g.prompt(""), "neg_scale": 1.5},
    "RenormCFG": {},
    "RescaleCFG": {"multiplier": 0.7},
    "SUPIRApply": {"model_patch": stand_in("upscaler"), "restore_cfg": 1.0, "restore_cfg_s_tmin": 0.0},
    "ScaleROPE": {"scale_x": 0.5, "shift_x": 3.0, "scale_y": 2.0, "shift_y": -1.0},
    "TCFG": {},
    "TemporalScoreRescaling": {"tsr_k": 0.5},
    "TrainLoraNode": {
        "model": lambda g, m: g.add("Seeded", model=m),
        "latents": lambda g, m: g.add("TwoLatents"),
        "positive": lambda g, m: g.prompt(SHORT),
        "steps": 2,
        "learning_rate": 0.1,
        "rank": 4,
        "optimizer": "SGD",
        "training_dtype": "fp32",
        "lora_dtype": "fp32",
    },
    "VideoLinearCFGGuidance": {},
    "VideoTriangleCFGGuidance": {},
    "WanContextWindowsManual": {**WINDOWS, "context_length": 17},
    "ZImageFunControlnet": {
        "model_patch": stand_in("z-image control"),
        "image": lambda g, m: BY_TYPE["IMAGE"](g),
    },
}
# What hangs on blocks and attention: ours calls it always, the host's own network some of it or nothing.
BLOCKS: dict[str, Inputs] = {
    "NAGuidance": {},
    "QwenImageDiffsynthControlnet": {
        "model_patch": stand_in("qwen control"),
        "vae": stand_in("video vae"),
    },
    "SkipLayerGuidanceDiT": {**WHOLE_RUN, "double_layers": "1", "single_layers": "0"},
    "SkipLayerGuidanceDiTSimple": {**WHOLE_RUN, "double_layers": "1", "single_layers": "0"},
    "SkipLayerGuidanceSD3": {**WHOLE_RUN, "layers": "0, 1"},
}
# Made for other networks, or of no effect on a CPU.
NOTHING: dict[str, Inputs] = {
    "ARVideoI2V": {"width": 64, "height": 64, "length": 5},
    "AnimaLLLiteApply": {"model_patch": stand_in("lllite")},
    "ChromaRadianceOptions": {"nerf_tile_size": 16, "force_sequential_txt_ids": True},
    "FluxKVCache": {},
    "HyperTile": {"tile_size": 32},
    "HypernetworkLoader": {"hypernetwork_name": "small.pt"},
    "LTXVModalityGuidance": {},
    "LTXVReferenceAudio": {"reference_audio": stand_in("sound"), "audio_vae": stand_in("audio vae")},
    "LTXVSpatioTemporalGuidance": {"blocks": "0, 1"},
    "ModelAttentionBackend": {},
    "MultiGPU_WorkUnits": {},
    "PatchModelAddDownscale": WHOLE_RUN,
    "PerturbedAttentionGuidance": {},
    "SelectModelDevice": {"device": "cpu"},
    "TomePatchModel": {"ratio": 0.5},
    "UNetCrossAttentionMultiply": ATTENTION,
    "UNetSelfAttentionMultiply": ATTENTION,
    "UNetTemporalAttentionMultiply": {"self_structural": 1.5, "cross_temporal": 0.5},
    "USOStyleReference": {
        "model_patch": stand_in("style projector"),
        "clip_vision_output": stand_in("style"),
    },
    "WanAnimate2Cache": {},
    "wanBlockSwap": {},
}
# With the same error on ours as on the host's own network.
FAILS: dict[str, Inputs] = {
    "FreeU": FREE_U,
    "FreeU_V2": FREE_U,
    "SelfAttentionGuidance": {},
    "TripoSplatSamplingPreview": {},
    "WanInfiniteTalkToVideo": {
        "mode": "single_speaker",
        "model_patch": stand_in("talking"),
        "audio_encoder_output_1": stand_in("encoded sound"),
        "width": 64,
        "height": 64,
        "length": 5,
        "start_image": lambda g, m: BY_TYPE["IMAGE"](g),
    },
    "WanUni3CControlnetApply": {"model_patch": stand_in("camera control")},
}
ELSEWHERE = {
    "ModelComputeDtype": "test_model_nodes.test_compute_in_bfloat16",
    "TorchCompileModel": "test_compile",
}
SAMPLING: dict[str, Inputs] = {  # of the KSampler behind the node, where the usual one would show no effect
    "DifferentialDiffusion": {"latent_image": masked, "denoise": 0.8},
    "HiDreamO1PatchSeamSmoothing": {"latent_image": lambda g, m: g.empty(1, 768, 768), "steps": 1},
}
ALWAYS = (  # of which ours once did something else than the host's own network
    "AnimaLLLiteApply",
    "FluxKVCache",
    "HyperTile",
    "HypernetworkLoader",
    "RenormCFG",
    "TomePatchModel",
    "TrainLoraNode",
    "WanUni3CControlnetApply",
)
