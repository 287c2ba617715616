"""All settings and their defaults."""

from __future__ import annotations

from ml_collections import ConfigDict, config_dict

OPTIONAL = {"optimizer.learning_rate", "discriminator.learning_rate"}  # may be none


def default_config() -> ConfigDict:
    """All keys with the published values of the 256x256, 36-bit image tokenizer."""
    config = ConfigDict()
    config.name = "tokenizer"  # shown in logs and tables
    config.task = "tokenizer"  # tokenizer | prior | masked_lm: what is trained
    config.seed = 0  # of parameters, data order and augmentation; from 0 to 2^32 - 1

    config.model = model = ConfigDict()
    model.image_size = (256, 256)  # (height, width); on the command line 64 means a square
    model.frames = 1  # longest clip; 1 for images
    model.patch_size = 8
    model.bits = 36  # L, bits a token
    model.width = 768
    model.layers = 12  # of the encoder, and again of the decoder
    model.heads = 12
    model.mlp_ratio = 4.0
    model.head_hidden = 3072  # hidden width of the pixel head; 0 for one linear layer
    model.dtype = "bfloat16"  # of the computation; parameters and quantiser are float32
    model.remat = "none"  # none | dots | full: what is computed again in the backward pass
    model.attention = "auto"  # auto | dense | by_head | blocked | by_frame | cudnn | splash
    model.positions = "learned"  # learned (published) | sincos | rotary
    model.causality = "block_causal"  # block_causal | token_causal | full: who sees whom
    model.window = 0  # frames that a token sees, its own included; 0: all that causality allows

    model.min_bits = 0  # fewest bits of a token that it can be decoded from; 0: all are needed

    config.quantizer = quantizer = ConfigDict()
    quantizer.name = "bsq"
    quantizer.group_size = 1  # bits a group in the codebook entropy
    quantizer.inv_temperature = 1.0
    quantizer.token_weight = 1.0  # gamma0
    quantizer.codebook_weight = 1.0  # gamma
    quantizer.commitment_weight = 0.0  # beta

    config.prior = prior = ConfigDict()  # task prior; `model` is then that of its tokenizer
    prior.tokenizer = ""  # workdir or export
    prior.width = 192
    prior.layers = 4
    prior.heads = 6
    prior.hidden = 96  # channels of the network that goes through the bits of a token
    prior.window = 2  # frames that a token looks at, its own included
    prior.order = "raster"  # raster | grids: three steps a frame

    config.masked_lm = masked = ConfigDict()  # task masked_lm; `model` is that of its tokenizer
    masked.tokenizer = ""  # workdir or export
    masked.group_size = 9  # bits of a token that are one word; the last group has what is left
    masked.frames = 1  # frames of a clip that it looks at
    masked.width = 768
    masked.layers = 24
    masked.heads = 8
    masked.mlp_ratio = 4.0
    masked.classes = 0  # number of classes of the data; 0: it is not told them
    masked.label_dropout = 0.1  # share of examples whose class it is not told, for guidance
    masked.label_smoothing = 0.1
    masked.schedule = "cosine"  # of masks: cosine | linear | square | cubic | sqrt | arccos
    masked.mask_unit = "token"  # token | group: what is masked, and generated, as a whole

    config.sampling = sampling = ConfigDict()  # how a masked_lm generates; the command's defaults
    sampling.steps = 32  # at most one for each token
    sampling.schedule = "cosine"  # of what is still masked after a step, as masked_lm.schedule
    sampling.order = "confidence"  # confidence | random: what is decided first
    sampling.temperature = 1.0  # of the words
    sampling.noise = 4.5  # of the confidence, times Gumbel noise that falls to 0 at the last step
    sampling.guidance = 0.0  # classifier-free: logits + guidance x (logits - those without class)

    config.loss = loss = ConfigDict()
    loss.l1 = 1.0  # weight of the mean absolute error, pixels in [-1, 1]
    loss.l2 = 0.0  # weight of the mean squared error
    loss.entropy = 0.1  # weight of the quantiser's loss at the end of the ramp
    loss.entropy_ramp_start = 3.0  # times the weight at step 0
    loss.entropy_ramp_steps = 2000  # linear ramp down to 1x
    loss.perceptual = 0.1  # weight of LPIPS with VGG16 features
    loss.adversarial = 0.1  # weight of the generator's adversarial loss; 0: no discriminator
    loss.adversarial_kind = "non_saturating"  # non_saturating | hinge
    loss.adversarial_start = 0  # step from which both players play
    loss.adaptive = False  # scale the adversarial weight by the ratio of last-layer gradients
    loss.r1 = 10.0  # gamma of the R1 penalty, which counts gamma / 2; 0 for none
    loss.r1_every = 16  # steps between R1 penalties, each of this many times the weight
    loss.lecam = 0.0  # weight of the LeCAM regulariser
    loss.lecam_decay = 0.999  # of the averaged logits that LeCAM keeps

    config.discriminator = discriminator = ConfigDict()
    # stylegan | stylegan3d (clips; shorter ones are held at their last frame) | patchgan
    discriminator.name = "stylegan"
    discriminator.channel_base = 32768  # stylegan: channels at a resolution, times the resolution
    discriminator.channel_max = 512  # stylegan: the most channels
    discriminator.stddev_group = 4  # stylegan, stylegan3d: examples a group of minibatch-stddev
    discriminator.width = 64  # stylegan3d, patchgan: channels of the first block
    discriminator.layers = 3  # patchgan: strided layers
    discriminator.clip = "none"  # none | global | parameter: a clip would swallow R1's lazy steps
    # None: the generator's. Everything else about its optimizer is as in `optimizer`, with the
    # schedule (warm-up, cosine) laid out over the steps from loss.adversarial_start to the last.
    discriminator.learning_rate = config_dict.placeholder(float)

    config.optimizer = optimizer = ConfigDict()
    # None: 4e-7 x global batch.
    optimizer.learning_rate = config_dict.placeholder(float)
    optimizer.warmup_steps = 5000  # linear, from warmup_start x the rate
    optimizer.warmup_start = 0.1
    optimizer.final = 0.5  # x the rate at the last step, along a cosine
    optimizer.b1 = 0.9
    optimizer.b2 = 0.99
    optimizer.eps = 1e-8
    optimizer.weight_decay = 1e-4
    optimizer.decay_all = False  # decay norms, biases and embeddings too
    optimizer.clip = "parameter"  # none | global | parameter
    optimizer.clip_norm = 1.0
    optimizer.ema = 0.999  # decay of the averaged parameters; 0 keeps none

    config.data = data = ConfigDict()
    # Pictures: photos | digits | folder:PATH | tfds:NAME | array_record:GLOB | synthetic
    # Clips: motion | clips:PATH | tfds:NAME | array_record:GLOB
    # For models of tokens also: tokens:PATH
    data.source = "photos"
    data.val_source = ""  # empty: the validation split of `source`
    data.resize = 256  # short side in pixels before the random crop
    data.scale = (1.0, 1.0)  # range of the crop's side, times image_size; drawn log-uniformly
    data.flip = True  # mirror half of the pictures
    data.permute_channels = 0.0  # share of crops with colour channels in a random order
    data.filter = "bicubic"  # of training: bilinear | bicubic | lanczos | box | hamming
    data.eval_filter = "lanczos"
    data.eval_resize = 256  # short side in pixels before the evaluation crop
    data.eval_crop = "center"  # center | tiles (all crops of a picture that do not overlap)
    data.threads = 16  # decoding threads of each host
    data.prefetch = 4  # batches kept ready on each host
    data.cache_mb = 0  # memory of each host for decoded training pictures
    data.max_broken = 0.05  # share of unreadable records that stops the run
    data.frames = 0  # frames of a clip; 0: model.frames
    data.stride = 1  # frames of the video from one frame of a clip to the next
    data.min_frames = 0  # shortest clip in training, lengths are drawn; 0: all are of `frames`
    data.image_share = 0.0  # share of training steps whose examples are single frames
    data.image_source = ""  # where these come from; empty: from `source`
    data.eval_clips = 1  # clips of each validation video, evenly spaced

    config.train = train = ConfigDict()
    train.steps = 1_000_000
    train.batch_size = 256  # global: over all devices of all hosts
    train.accumulate = 1  # micro-batches a step
    train.log_every = 100
    train.checkpoint_every = 5000
    train.keep = 2  # complete checkpoints kept
    train.evaluate_every = 10_000  # 0: only at the end
    # 0: only at the end. Pictures are part of an evaluation, so this makes whole evaluations, also
    # where evaluate_every is 0.
    train.picture_every = 5000
    train.deterministic = False  # on GPUs: the same to the bit when resumed, with slower kernels
    train.init = ""  # workdir or export whose weights a new run starts from; empty: random ones

    config.eval = evaluation = ConfigDict()
    evaluation.batch_size = 64  # global
    evaluation.pictures = 8  # examples in a picture grid
    evaluation.lpips = True  # LPIPS with AlexNet features
    evaluation.frechet = True  # Frechet distances of the features of frozen networks
    evaluation.inception = ""  # file of Inception-v3 weights for FID and IS; empty: not measured
    evaluation.neighbours = 3  # k of precision and recall; 0 leaves them out
    evaluation.neighbours_examples = 10_000  # the most frames that precision and recall look at
    evaluation.videos = 2  # clips written as mp4 files
    evaluation.samples = 1000  # generated pictures that are measured; 0: none are

    config.mesh = mesh = ConfigDict()
    mesh.data = -1  # -1: all devices that the other axes leave
    mesh.fsdp = 1
    mesh.tensor = 1
    return config.lock()
