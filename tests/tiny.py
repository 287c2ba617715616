"""A config file for tests: a model that trains in moments, on pictures that are computed.

With ``:clips`` a model of clips of three and four frames, and of single frames now and then. With
``:prior=FOLDER`` or ``:masked_lm=FOLDER`` a model of the tokens of the tokenizer there.
"""

from bsq_jax.config import default_config


def get_config(argument=""):
    if argument.startswith("prior="):
        return get_prior(argument.removeprefix("prior="))
    if argument.startswith("masked_lm="):
        return get_masked_lm(argument.removeprefix("masked_lm="))
    config = default_config()
    config.name = "tiny"
    config.model.update(
        image_size=(16, 16), bits=6, width=16, layers=1, heads=2, head_hidden=0, dtype="float32"
    )
    config.loss.update(perceptual=0.0, adversarial=0.0)
    config.optimizer.update(learning_rate=1e-3, warmup_steps=2, ema=0.9)
    config.data.update(source="synthetic", resize=16, eval_resize=16, threads=1, cache_mb=8)
    config.train.update(
        steps=6, batch_size=8, log_every=1, checkpoint_every=2, evaluate_every=0, picture_every=0
    )
    config.eval.update(batch_size=8, lpips=False, frechet=False)
    if argument == "clips":
        config.name = "tiny clips"
        config.model.frames = 4
        config.data.update(source="motion", min_frames=3, image_share=0.25)
    return config


def get_prior(tokenizer, **changes):
    """A prior on the tokens of `tokenizer`, a workdir or export of the model above."""
    config = get_config()
    config.name, config.task = "tiny prior", "prior"
    config.prior.update(
        tokenizer=str(tokenizer), width=16, layers=1, heads=2, hidden=8, window=2, **changes
    )
    config.optimizer.learning_rate = 5e-3
    return config


def get_masked_lm(tokenizer, **changes):
    """A masked language model of digits on the tokens of `tokenizer`, as above."""
    config = get_config()
    config.name, config.task = "tiny masked LM", "masked_lm"
    config.masked_lm.update(
        tokenizer=str(tokenizer), group_size=3, width=16, layers=1, heads=2, classes=10
    )
    config.masked_lm.update(changes)
    config.sampling.steps = 3
    config.data.update(source="digits", flip=False)
    config.optimizer.learning_rate = 5e-3
    config.eval.update(pictures=2, samples=0)
    return config
