"""What was probably meant by a key that does not exist: other names of settings, and close ones.

Words of other code bases (``lr``, ``bs``, ``num_bits``) are listed here with the setting that has
their place; all others are compared with the names of all settings, whatever their section.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from bsq_jax.config.declaration import Setting
from bsq_jax.config.settings import SECTIONS, declared

SETTINGS_PAGE = "bsq_jax/config/settings.py"
_MOST = 3
_CLOSE = 0.65  # similarity from which on a name counts as close; 1 is the same
_CLOSE_SYNONYM = 0.8  # the same of another name, of which there are many
_CLOSE_WHOLE = 0.9  # the same of a key with its section, whose name alone is much of it
_NEAR_BEST = 0.12  # further ones must be as close as the best, less this
_ELSEWHERE = 0.13  # what a setting is less close whose namesake in another section is meant
_IN_SECTION = 0.15  # what a setting is closer that is in the section which was typed

# Setting, what it is, and other names of it. A name may stand for several; the first is the usual.
NAMES: tuple[tuple[str, str, str], ...] = (
    ("optimizer.learning_rate", "peak learning rate", "lr learning_rate peak_lr max_lr base_lr"),
    ("optimizer.weight_decay", "weight decay", "wd decay l2_penalty"),
    (
        "optimizer.warmup_steps",
        "steps of linear warm-up",
        "warmup warm_up warmup_iters warmup_epochs num_warmup_steps lr_warmup",
    ),
    (
        "optimizer.final",
        "learning rate at the last step, as a share of the peak",
        "min_lr final_lr end_lr lr_min lr_schedule lr_scheduler lr_decay scheduler",
    ),
    (
        "discriminator.learning_rate",
        "of the discriminator; by default as the generator's",
        "disc_lr lr_disc d_lr lr_d",
    ),
    ("optimizer.name", "adamw or muon", "optim opt"),
    ("optimizer.b1", "beta 1 of Adam", "beta1 betas adam_beta1 momentum"),
    ("optimizer.momentum", "muon: of the averaged gradients", "momentum mu"),
    ("optimizer.muon_learning_rate", "muon: its own peak learning rate", "muon_lr lr_muon"),
    ("optimizer.b2", "beta 2 of Adam", "beta2 betas adam_beta2"),
    ("optimizer.eps", "epsilon of Adam", "epsilon adam_eps adam_epsilon"),
    (
        "optimizer.clip_norm",
        "largest norm of a gradient",
        "grad_clip clip_grad clip_grad_norm max_norm max_grad_norm gradient_clip",
    ),
    (
        "optimizer.clip",
        "what is clipped: none, global or parameter",
        "grad_clip clip_grad gradient_clip clipping",
    ),
    ("optimizer.ema", "decay of the averaged parameters", "ema_decay ema_rate polyak averaging"),
    (
        "train.steps",
        "training steps in all",
        "steps iters iterations num_steps max_steps total_steps",
    ),
    (
        "train.steps",
        "a run is counted in steps: epochs x examples / train.batch_size",
        "epochs epoch num_epochs max_epochs n_epochs",
    ),
    (
        "train.batch_size",
        "examples a step, over all devices",
        "bs batch batchsize global_batch_size train_batch_size mini_batch",
    ),
    (
        "train.accumulate",
        "micro-batches a step",
        "grad_accum accum accum_steps accumulation gradient_accumulation_steps micro_batches",
    ),
    (
        "train.log_every",
        "steps from one log line to the next",
        "log log_interval log_freq log_steps",
    ),
    (
        "train.checkpoint_every",
        "steps from one checkpoint to the next",
        "ckpt checkpoint save save_every save_steps save_interval ckpt_every",
    ),
    (
        "train.init",
        "workdir or export to start a new run from; a run goes on with its own --workdir",
        "ckpt checkpoint init_from pretrained resume resume_from restore load finetune weights",
    ),
    ("train.keep", "checkpoints that are kept", "max_to_keep keep_last save_total_limit"),
    (
        "train.evaluate_every",
        "steps from one evaluation to the next",
        "eval_every eval_interval eval_freq eval_steps val_every val_interval",
    ),
    (
        "log.wandb",
        "project of Weights & Biases to log to",
        "wandb_project wandb use_wandb project logger tracker report_to weights_and_biases",
    ),
    ("train.deterministic", "the same bits when a run resumes on GPUs", "reproducible"),
    ("seed", "of parameters, data order and augmentation", "random_seed rng manual_seed"),
    ("task", "tokenizer, prior or masked_lm", "model_type kind"),
    (
        "model.bits",
        "bits of a token, L; a codebook of 2^L codes",
        "l num_bits nbits n_bits bit token_bits code_bits embed_dim latent_dim codebook_dim",
    ),
    ("model.patch_size", "side of a patch in pixels", "patch patchsize p downsample stride"),
    (
        "model.image_size",
        "height and width in pixels",
        "res resolution size img_size imagesize input_size image_resolution crop_size",
    ),
    ("model.frames", "longest clip, in frames", "num_frames clip_length clip_len sequence_length"),
    ("model.width", "channels of a token", "dim hidden hidden_size hidden_dim d_model channels"),
    ("model.layers", "blocks of the encoder, and of the decoder", "depth num_layers n_layers"),
    (
        "model.head_channels",
        "channels of the convolutions behind the pixel head; 0: none",
        "head conv_head decoder_head",
    ),
    ("model.heads", "attention heads", "num_heads n_heads n_head nhead"),
    (
        "model.dtype",
        "float32 or bfloat16",
        "precision amp bf16 fp16 fp32 half mixed_precision compute_dtype",
    ),
    (
        "model.remat",
        "what the backward pass computes again, to save memory",
        "gradient_checkpointing grad_checkpoint grad_checkpointing checkpointing rematerialize",
    ),
    (
        "quantizer.codes",
        "vq: size of the codebook; others have 2^model.bits codes",
        "codebook_size codebook vocab_size vocab num_codes n_codes n_embed num_embeddings",
    ),
    (
        "quantizer.stages",
        "residual stages of a token",
        "num_quantizers n_quantizers residual residual_stages rvq num_stages",
    ),
    ("quantizer.name", "bsq, lfq, fsq, vq or leech", "quantizer_type quantization quant"),
    (
        "quantizer.commitment_weight",
        "weight of the distance to the code",
        "beta commitment commitment_cost commitment_loss commit",
    ),
    ("quantizer.inv_temperature", "of the soft assignment in the entropies", "inv_temp tau"),
    ("quantizer.codebook_weight", "gamma, of the entropy of the mean code", "gamma diversity"),
    ("quantizer.levels", "fsq: values of each channel", "fsq_levels num_levels"),
    ("loss.entropy", "weight of the quantizer's entropy terms", "entropy_weight entropy_loss"),
    ("loss.perceptual", "weight of LPIPS", "lpips lpips_weight perceptual_weight vgg"),
    ("loss.perceptual_start", "step from which LPIPS counts", "lpips_start perceptual_from"),
    ("loss.adversarial", "weight of the adversarial loss", "gan adv gan_weight disc_weight"),
    ("loss.adversarial_start", "step from which there is a discriminator", "disc_start gan_start"),
    ("loss.l1", "weight of the mean absolute error", "mae l1_weight recon_weight"),
    ("loss.l2", "weight of the mean squared error", "mse l2_weight recon_weight"),
    (
        "data.source",
        "what to train on, such as folder:/pictures",
        "data dataset data_dir data_path data_root dataset_path train_data train_dir folder path "
        "webdataset wds tar shards train_shards parquet huggingface hf_dataset",
    ),
    (
        "data.val_source",
        "what to evaluate on",
        "val val_data val_dir val_dataset validation validation_data eval_data test_data",
    ),
    ("data.threads", "decoding threads of each host", "num_workers n_workers"),
    ("data.workers", "processes of each host that make batches", "num_workers n_workers"),
    ("data.flip", "mirror half of the pictures", "hflip horizontal_flip augment augmentation"),
    ("sampling.guidance", "classifier-free guidance", "cfg cfg_scale guidance_scale"),
    ("masked_lm.classes", "number of classes of the data", "num_classes n_classes labels"),
    ("mesh.data", "devices that share the batch", "dp gpus devices num_gpus data_parallel"),
    ("mesh.tensor", "devices that share each matrix", "tp tensor_parallel model_parallel"),
    ("mesh.fsdp", "devices that share the parameters", "zero sharding shard"),
)


_SECTIONS = {
    "model": "of the tokenizer",
    "quantizer": "of the quantizer",
    "prior": "of the prior",
    "masked_lm": "of the masked language model",
    "sampling": "of generation",
    "discriminator": "of the discriminator",
    "data": "of the data",
    "eval": "of evaluation",
    "log": "of the record of a run",
}


class Suggestion(NamedTuple):
    """A setting that may have been meant, and what it is in a few words."""

    key: str
    meaning: str


def suggestions(name: str, keys: Sequence[str] | None = None) -> list[Suggestion]:
    """The settings that a key which does not exist may have meant, the likeliest first.

    Args:
      name: as it was typed: ``optimizer.lr``, ``lr``, ``batch-size``.
      keys: those to choose from; None: all settings.

    Returns:
      At most three; none where nothing is like it. The meaning is empty where nothing is known.
    """
    name = name.strip().lower().replace("-", "_")
    section, _, leaf = name.rpartition(".")
    known = list(declared()) if keys is None else list(keys)
    found: dict[str, float] = {}
    meanings: dict[str, str] = {}
    for place, (key, meaning, words) in enumerate(NAMES):
        score = max(_alike(leaf, word) for word in words.split()) - 1e-5 * place
        if score < _CLOSE_SYNONYM:
            continue
        for other in known:
            if _leaf(other) != _leaf(key):
                continue
            same = other == key or keys is not None
            value = score - (0 if same else _ELSEWHERE)
            if value > found.get(other, 0.0):
                found[other] = value
                if same:
                    meanings[other] = meaning
    for place, key in enumerate(known):
        whole = 0.0 if section else _alike(name, key)  # of train_steps
        value = max(_alike(leaf, _leaf(key)), whole if whole > _CLOSE_WHOLE else 0.0)
        value -= 0.001 + 1e-5 * place
        if value > found.get(key, 0.0):
            found[key] = value
            meanings.pop(key, None)
        if section and key.rpartition(".")[0] == section and found.get(key, 0.0) >= _CLOSE:
            found[key] += _IN_SECTION
    if keys is None and not section:
        for group in SECTIONS:
            if (value := _alike(leaf, group)) >= _CLOSE:
                found[group], meanings[group] = value, "a group of settings"
    best = max(found.values(), default=0.0)
    least = max(_CLOSE, best - _NEAR_BEST)
    order = sorted((key for key in found if found[key] >= least), key=lambda key: -found[key])
    return [Suggestion(key, meanings.get(key) or _meaning(key)) for key in order[:_MOST]]


def did_you_mean(name: str, keys: Sequence[str] | None = None, *, prefix: str = "") -> str:
    """``: did you mean KEY (what it is) or KEY (what it is)?``, to end a message with.

    Args:
      name: as it was typed.
      keys: those to choose from; None: all settings.
      prefix: what to write before each key, such as ``--config.``.

    Returns:
      The words; where nothing is like it, where to find all keys.
    """
    found = suggestions(name, keys)
    if not found:
        return f": no setting is called like it, see {SETTINGS_PAGE} for all" if not keys else ""
    words = (f"{prefix}{key} ({meaning})" if meaning else prefix + key for key, meaning in found)
    return f": did you mean {either(words)}?"


def either(words: Iterable[str]) -> str:
    """``a``, ``a or b``, ``a, b or c``."""
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last


def _leaf(key: str) -> str:
    return key.rpartition(".")[2]


def _alike(one: str, other: str) -> float:
    """How alike two names are, 0 to 1; underscores and dots do not count."""
    one, other = (text.replace("_", "").replace(".", "") for text in (one, other))
    if one == other:
        return 1.0
    if min(len(one), len(other)) < 3:  # any two of so few letters look alike
        return 0.0
    return 0.97 * difflib.SequenceMatcher(None, one, other, autojunk=False).ratio()


def _meaning(key: str) -> str:
    """What a setting is, from the table or else from its declaration."""
    for known, meaning, _ in NAMES:
        if known == key:
            return meaning
    setting = declared().get(key)
    if setting is None:
        return ""
    section = _SECTIONS.get(key.partition(".")[0])
    return "; ".join(filter(None, (section, _values(setting))))


def _values(setting: Setting) -> str:
    if setting.allowed.choices:
        return either(setting.allowed.choices)
    default = setting.default
    if isinstance(default, tuple):
        default = ",".join(map(str, default))
    elif isinstance(default, bool):
        default = str(default).lower()
    return "text" if default == "" else f"by default {default}"
