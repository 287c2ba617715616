r"""Shows what a model does to a picture, on a page in the browser.

Examples:
  bsq-jax demo
  bsq-jax demo --model runs/prior
  bsq-jax demo --model runs/quickstart --port 0

The page takes a picture, an animation or a video, or a photograph of scikit-image or scikit-learn.
It shows the original and the reconstruction under a divider that can be moved, for each number of
bits a token; the size of the .bsq file and what JPEG, WebP and AVIF make of as many bytes; where
the prior spends its bits; and what comes of it when a bit of a token is flipped.

The model is the workdir or export of a prior, or of a tokenizer alone. Large pictures are made
smaller, to about a megapixel, and of clips the first frames are taken. AVIF is written at speed 8,
which takes a moment. The page is served to this machine alone unless --host names an address of
this machine that others reach, without a password; nothing is written, and nothing is loaded from
elsewhere. Ctrl-C ends it. More is in docs/demo.md.
"""

from __future__ import annotations

import argparse

from bsq_jax.cli.command import Command
from bsq_jax.cli.inputs import add_model, model_path
from bsq_jax.cli.outputs import say
from bsq_jax.core.errors import UserError

_MOST_PORT = 65535


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``demo``."""
    add_model(parser)
    parser.add_argument("--port", type=int, default=8000, help="default 8000; 0: any that is free")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to serve at; default: this machine alone"
    )


def run(flags: argparse.Namespace) -> int:
    """Serves the page until Ctrl-C."""
    if not 0 <= flags.port <= _MOST_PORT:
        raise UserError(f"--port {flags.port}: give 0 to {_MOST_PORT}")
    if flags.host in ("", "0.0.0.0", "::"):
        raise UserError(
            f"--host '{flags.host}' is every address: give the one address or name of this machine "
            "that the browser will open"
        )
    path = model_path(flags)

    from bsq_jax.cli.demo_page.server import DemoServer, bound
    from bsq_jax.cli.demo_page.workbench import Workbench
    from bsq_jax.coding.codec import Codec
    from bsq_jax.core.compilation_cache import enable_compilation_cache

    listening = bound(flags.host, flags.port)  # before a model is loaded for nothing
    with listening:
        enable_compilation_cache()
        codec = Codec.load(path)
        with DemoServer(listening, flags.host, Workbench(codec)) as server:
            open_to = "" if server.guard.loopback else ", to all who reach this machine"
            say(f"{server.url} shows {codec.name}{open_to}; Ctrl-C ends it")
            server.serve_forever()
    return 0


COMMAND = Command(
    "show what a model does, on a local page in the browser",
    __doc__,
    add_arguments,
    run,
    interrupted="the page is no longer served",
)
