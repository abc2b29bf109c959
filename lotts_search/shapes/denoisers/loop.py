"""The training loop of all models of the shapes world: resumable, with averaged weights and progress."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lotts_search.work.replacing import replacing

Loss = Callable[[int], tuple[Tensor, dict[str, float]]]


class Ema:
    """An exponential moving average of a module's parameters in fp32."""

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.shadow = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Average in the current parameters; the decay grows with ``step`` up to its final value."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averaged: list[Tensor] = []
        values: list[Tensor] = []
        for key, value in module.state_dict().items():
            if value.dtype.is_floating_point:
                averaged.append(self.shadow[key])
                values.append(value)
            else:
                self.shadow[key].copy_(value)
        torch._foreach_lerp_(averaged, values, 1 - decay)


class Trainer:
    """Minimizes ``loss(step)`` for a number of steps, with warm-up and cosine decay, and writes checkpoints.

    The optimizer is AdamW, with Muon (Jordan et al. 2024, with the step size of Liu et al. 2025) for ``matrices``.

    Args:
        module: the module to train; :meth:`averaged` gives it the weights of its moving average.
        folder: folder of ``state.safetensors``, ``state.json`` and ``log.jsonl``; a run found there is resumed.
        steps: total number of optimizer steps.
        lr: peak learning rate.
        matrices: names of the parameters [M, N] that Muon trains.
        ema: decay of the moving average.
        warmup: steps of linear warm-up.
        weight_decay: weight decay of both optimizers.
        minutes: train for this long instead. The learning rate then follows the time, and ``steps`` is only a limit.
        save_every: seconds between checkpoints.
        describe: called with one line of progress every few seconds.
    """

    def __init__(
        self,
        module: nn.Module,
        folder: Path,
        steps: int,
        lr: float,
        *,
        matrices: Collection[str] = (),
        ema: float = 0.999,
        warmup: int = 200,
        weight_decay: float = 0.01,
        minutes: float | None = None,
        save_every: float = 120.0,
        describe: Callable[[str], None] = print,
    ):
        self.module, self.folder, self.steps, self.lr, self.warmup = module, folder, steps, lr, warmup
        self.minutes, self.save_every, self.describe = minutes, save_every, describe
        self._parameters = dict(module.named_parameters())
        muon, adamw = ([p for n, p in self._parameters.items() if (n in matrices) == own] for own in (True, False))
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(
                adamw,
                lr=lr,
                weight_decay=weight_decay,
                betas=(0.9, 0.99),
                fused=next(module.parameters()).is_cuda,
            )
        ]
        if muon:
            self.optimizers.append(
                torch.optim.Muon(muon, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
            )
        self._matrices = matrices
        self.ema = Ema(module, ema)
        self.step = 0
        self.seconds = 0.0
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "state.json").exists():
            self._load()

    def _optimizer(self, name: str) -> torch.optim.Optimizer:
        """Return the optimizer of a parameter."""
        return self.optimizers[-1 if name in self._matrices else 0]

    def _save(self) -> None:
        tensors = {f"module.{k}": v for k, v in self.module.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.shadow.items()}
        for name, parameter in self._parameters.items():
            for key, value in self._optimizer(name).state.get(parameter, {}).items():
                tensors[f"optimizer.{key}.{name}"] = torch.as_tensor(value)
        tensors = {k: v.detach().clone().contiguous() for k, v in tensors.items()}
        with replacing(self.folder / "state.safetensors") as temporary:
            save_file(tensors, temporary)
        state = {"step": self.step, "steps": self.steps, "seconds": round(self.seconds, 1)}
        (self.folder / "state.json").write_text(json.dumps(state))

    def _load(self) -> None:
        state = json.loads((self.folder / "state.json").read_text())
        device = next(self.module.parameters()).device
        tensors = load_file(self.folder / "state.safetensors", device=str(device))
        self.step, self.seconds = state["step"], state["seconds"]
        self.module.load_state_dict({k[7:]: v for k, v in tensors.items() if k.startswith("module.")})
        self.ema.shadow = {k[4:]: v for k, v in tensors.items() if k.startswith("ema.")}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, part, name = key.split(".", 2)
                self._optimizer(name).state[self._parameters[name]][part] = value
        self.describe(f"resuming at step {self.step} of {self.steps}")

    @property
    def progress(self) -> float:
        """The finished share of the training, 0..1, of the steps or of the minutes."""
        done = self.step / self.steps
        return min(1.0, done if self.minutes is None else max(done, self.seconds / (60 * self.minutes)))

    def _rate(self) -> float:
        warm = min(1.0, (self.step + 1) / self.warmup)
        return self.lr * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self.progress)))

    def run(self, loss: Loss) -> None:
        """Train to the end. On Ctrl-C or SIGTERM, write a checkpoint and raise KeyboardInterrupt."""
        window: list[dict[str, float]] = []
        saved = shown = time.monotonic()
        with _stop_flag() as stopped:
            while self.progress < 1:
                started = time.monotonic()
                for optimizer in self.optimizers:
                    optimizer.zero_grad(set_to_none=True)
                    for group in optimizer.param_groups:
                        group["lr"] = self._rate()
                value, parts = loss(self.step)
                value.backward()  # type: ignore[no-untyped-call]
                norm = nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
                if torch.isfinite(norm):
                    for optimizer in self.optimizers:
                        optimizer.step()
                self.step += 1
                self.ema.update(self.module, self.step)
                now = time.monotonic()
                self.seconds += now - started
                window.append(parts)
                if now - shown > 10 or self.progress == 1:
                    self._report(window, now - shown)
                    window, shown = [], now
                if now - saved > self.save_every or stopped():
                    self._save()
                    saved = now
                if stopped():
                    raise KeyboardInterrupt
        self._save()

    def _report(self, window: list[dict[str, float]], elapsed: float) -> None:
        means = {k: round(sum(w[k] for w in window) / len(window), 5) for k in window[0]}
        record: dict[str, Any] = {"step": self.step, "seconds": round(self.seconds), **means}
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(record) + "\n")
        rate = len(window) / elapsed
        left = (self.steps - self.step) / max(rate, 1e-9) / 60
        if self.minutes is not None:
            left = min(left, self.minutes - self.seconds / 60)
        losses = " ".join(f"{k} {v:.4f}" for k, v in means.items())
        self.describe(f"step {self.step}/{self.steps}  {losses}  {rate:.2f} steps/s  {left:.1f} min left")

    def averaged(self) -> nn.Module:
        """Return the module with its averaged weights, in evaluation mode."""
        self.module.load_state_dict(self.ema.shadow)
        return self.module.eval()


@contextlib.contextmanager
def _stop_flag() -> Iterator[Callable[[], bool]]:
    """Turn SIGINT and SIGTERM into a flag that is read between steps."""
    hit: list[int] = []
    old = {s: signal.signal(s, lambda number, _: hit.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(hit)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
