"""The same tokenizer in plain PyTorch, to compare speed with, as a process that takes commands.

`benchmarks.peer` starts it (``python -m benchmarks.torch_peer``) and writes one JSON object a line;
each is answered by one line. It does not need JAX, and while it waits for a line it sleeps. The
network is `benchmarks.torch_tokenizer`, the training step `benchmarks.torch_training`.
"""

from __future__ import annotations

import functools
import gc
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.torch_tokenizer import DEVICE, TorchTokenizer
from benchmarks.torch_training import TrainingStep, loss_of, train
from benchmarks.work import Product, Schedule, Work, modes


def make_calls(work: Work) -> tuple[dict[str, Callable[[], Any]], int]:
    """What can be timed, by `benchmarks.work.modes`, and the number of parameters.

    All share the parameters and the optimizer's state, which hardly fit into memory twice.
    """
    model = TorchTokenizer(work).to(DEVICE).train(work.train)
    numbers = sum(leaf.numel() for leaf in model.parameters())
    pixels = torch.randint(0, 256, work.pixels, dtype=torch.uint8, device=DEVICE)
    low = work.dtype == "bfloat16"
    if low and not work.train:  # no copy of the weights in each call, as autocast makes one
        model = model.to(torch.bfloat16)

    def network(by_frame: bool) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=low and work.train):
            return model(pixels, by_frame)

    @torch.no_grad()
    def reconstruct(by_frame: bool) -> torch.Tensor:
        return model.picture(network(by_frame)[0])

    def loss(by_frame: bool) -> torch.Tensor:
        return loss_of(work, model.patches(pixels), *network(by_frame))

    forward = loss if work.train else reconstruct
    compiled = functools.cache(lambda: torch.compile(forward))  # when it is first needed
    forwards: dict[str, Callable[[], torch.Tensor]] = {
        "eager": lambda: forward(False),
        "compiled": lambda: compiled()(False),
        "by frame": lambda: forward(True),
    }
    if work.train:
        step = TrainingStep(work, model)
        return {mode: functools.partial(step, forwards[mode]) for mode in modes(work)}, numbers
    return {mode: forwards[mode] for mode in modes(work)}, numbers


def make_product(product: Product, dtype: str) -> Callable[[], Any]:
    """A matrix product of random numbers."""
    kind = getattr(torch, dtype)
    left, right = (torch.randn(shape, device=DEVICE).to(kind) for shape in product.shapes)
    left = left.mT if product.form == "atb" else left
    right = right.mT if product.form == "abt" else right
    return lambda: torch.matmul(left, right)


def seconds(function: Callable[[], Any], calls: int) -> float:
    """Seconds of a call, of so many in a row."""
    wait = torch.cuda.synchronize if DEVICE == "cuda" else torch.cpu.synchronize
    wait()
    begin = time.perf_counter()
    for _ in range(calls):
        function()
    wait()
    return (time.perf_counter() - begin) / calls


class Server:
    """Answers commands; what it has made stays, by number and mode, until it is dropped."""

    def __init__(self) -> None:
        self.made: dict[int, dict[str, Callable[[], Any]]] = {}

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        """The answer to a command, ``{"do": ...}`` with its arguments."""
        match command:
            case {"do": "describe"}:
                text = f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads"
                if DEVICE == "cuda":
                    text = f"PyTorch {torch.__version__} on {torch.cuda.get_device_name()}"
                return {"text": text, "device": DEVICE}
            case {"do": "work", "number": number, "work": work}:
                self.made[number], parameters = make_calls(Work(**work))
                return {"parameters": parameters}
            case {"do": "product", "number": number, "product": product, "dtype": dtype}:
                self.made[number] = {"product": make_product(Product(**product), dtype)}
                return {}
            case {"do": "train", "work": work, "schedule": schedule, **files}:
                return train(Work(**work), Schedule(**schedule), **files)
            case {"do": "run", "number": number, "mode": mode, "calls": calls}:
                return {"seconds": seconds(self.made[number][mode], calls)}
            case {"do": "drop", "number": number}:
                del self.made[number]
                gc.collect()
                if DEVICE == "cuda":
                    torch.cuda.empty_cache()
                return {}
        raise ValueError(f"unknown command {command}")


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    server = Server()
    for line in sys.stdin:
        try:
            answer = server.answer(json.loads(line))
        except Exception as error:  # the other side decides what to do without it
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
