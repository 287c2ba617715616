"""Checkpoints in the layout of the published code, as plain containers with arrays."""

import numpy as np

CONFIG = {
    "model": {
        "target": "transcoder.models.bsqvit.VITBSQModel",
        "params": {
            "embed_dim": 18,
            "embed_group_size": 9,
            "l2_norm": True,
            "post_q_l2_norm": True,
            "beta": 0.0,
            "inv_temperature": 2.0,
            "gamma": 0.5,
            "vitconfig": {
                "image_size": "${data.image_size}",
                "patch_size": 8,
                "width": 64,
                "layers": 2,
                "heads": 4,
                "mlp_ratio": 4,
                "drop_rate": 0.0,
            },
        },
    },
    "loss": {
        "params": {
            "disc_type": "stylegan",
            "disc_loss": "vanilla",
            "disc_weight": 0.2,
            "disc_reg_freq": 8,
            "perceptual_weight": 0.3,
            "codebook_rampup_steps": 1000,
        }
    },
    "data": {"image_size": 32, "zero_mean": True, "batch_size": 32},
    "optimizer": {"base_lr": 4e-7},
}


# Of a VITVQModel with the weights of `tiny_state` and a codebook.
VQ_CONFIG = {
    "model": {
        "target": "transcoder.models.bsqvit.VITVQModel",
        "params": {
            "embed_dim": 8,
            "n_embed": 64,
            "l2_norm": False,
            "beta": 0.5,
            "vitconfig": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "heads": 2},
        },
    },
    "loss": {"params": {"disc_type": "stylegan", "codebook_weight": 0.2}},
}
# What their published config of the spherical Leech quantizer has in place of it.
LEECH_PARAMS = {
    "embed_dim": 24,
    "n_embed": 196_560,
    "l2_norm": True,
    "predefined_codebook": "cache/leech_lattices_normalized.npy",
    "freeze_codebook": True,
}


def prefixed(state, prefix):
    return {prefix + key: array for key, array in state.items()}


def halved(state):
    """Other weights of the same shapes, with which an average is told from the raw ones."""
    return {key: array / 2 if array.dtype.kind == "f" else array for key, array in state.items()}


def with_time(state, frames=3):
    temporal = np.linspace(-1, 1, frames * 64, dtype=np.float32).reshape(frames, 64)
    names = ("encoder.temporal_positional_embedding", "decoder.temporal_positional_embedding")
    return state | dict.fromkeys(names, temporal)


def checkpoint(state, *, config=None, args=None, ema=True, discriminator=None):
    """The dict that the published code saves; the average is the golden state, raw is half."""
    saved = {
        "state_dict": prefixed(halved(state) if ema else state, "module."),
        "ema_state_dict": prefixed(state, "module.module.") if ema else None,
        "iter": 1234,
        "optimizer_generator": {"state": {}, "param_groups": [{"lr": 1e-4}]},
        "args": args,
    }
    if config is not None:
        saved["config"] = config
    if discriminator is not None:
        saved["state_dict_discriminator"] = discriminator
    return saved


def tiny_state(seed=0, channels=6):
    """Random weights of the model of tests/tiny.py; its config would say two heads."""
    width, pixels, tokens, hidden = 16, 192, 4, 64
    shapes = {
        "encoder.conv1.weight": (width, pixels),
        "decoder.conv_out.weight": (pixels, width),
        "decoder.conv_out.bias": (pixels,),
        "quant_embed.weight": (channels, width),
        "quant_embed.bias": (channels,),
        "post_quant_embed.weight": (width, channels),
        "post_quant_embed.bias": (width,),
    }
    for half in ("encoder", "decoder"):
        shapes[f"{half}.positional_embedding"] = (tokens, width)
        for norm in ("ln_pre", "ln_post"):
            shapes |= {f"{half}.{norm}.weight": (width,), f"{half}.{norm}.bias": (width,)}
        block = f"{half}.transformer.resblocks.0"
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"{block}.{norm}.weight": (width,), f"{block}.{norm}.bias": (width,)}
        for name, (outputs, inputs) in {
            "attn.in_proj_": (3 * width, width),
            "attn.out_proj.": (width, width),
            "mlp.c_fc.": (hidden, width),
            "mlp.c_proj.": (width, hidden),
        }.items():
            shapes[f"{block}.{name}weight"] = (outputs, inputs)
            shapes[f"{block}.{name}bias"] = (outputs,)
    rng = np.random.default_rng(seed)
    return {key: (rng.normal(size=s) * 0.2).astype(np.float32) for key, s in shapes.items()}
