"""Freeze what PyTorch computes for the two autoencoders, so that tests need no torch.

    python -m scripts.goldens.detectors        # writes tests/goldens/detectors/*.npz

The networks are built here from the paper's description (Linear without bias, BatchNorm1d, ELU,
dropout; bare last layers; additive skips). Dropout masks are drawn first and handed to both sides.
Each file holds the arrays of one network, its rows and masks, the forward pass in both modes, the
gradient of the mean squared error, running statistics and parameters after two AdamW steps, and
`meta` (versions, seed, sizes) as JSON.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

GOLDENS = Path(__file__).parents[2] / "tests" / "goldens" / "detectors"
LEARNING_RATE, WEIGHT_DECAY, DROPOUT = 1e-3, 1e-2, 0.2


class Block(nn.Module):
    """Linear, BatchNorm, ELU and dropout by a given mask; bare: the linear map alone."""

    def __init__(self, n_in: int, n_out: int, bare: bool):
        super().__init__()
        self.linear = nn.Linear(n_in, n_out, bias=False)
        self.bn = nn.Identity() if bare else nn.BatchNorm1d(n_out)
        self.bare = bare
        self.keep: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102
        x = self.bn(self.linear(x))
        if self.bare:
            return x
        x = nn.functional.elu(x)
        if self.training and self.keep is not None:
            x = x * self.keep / (1.0 - DROPOUT)
        return x


class Network(nn.Module):
    """Encoder and decoder with optional additive skips."""

    def __init__(self, n_features: int, dims: tuple[int, ...], residual: bool):
        super().__init__()
        down = (n_features, *dims)
        up = down[::-1]
        last = len(dims) - 1
        self.encoder = nn.ModuleList(
            Block(down[i], down[i + 1], i == last) for i in range(last + 1)
        )
        self.decoder = nn.ModuleList(Block(up[i], up[i + 1], i == last) for i in range(last + 1))
        self.residual = residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102
        skips = []
        for layer in self.encoder:
            x = layer(x)
            skips.append(x)
        skips.pop()
        for j, layer in enumerate(self.decoder):
            x = layer(x)
            if self.residual and j < len(self.decoder) - 1:
                x = x + skips.pop()
        return x

    def blocks(self) -> list[Block]:
        """Blocks that drop units, in the order of the forward pass."""
        return [b for b in (*self.encoder, *self.decoder) if not b.bare]


def our_name(name: str) -> str | None:
    """Name of a PyTorch entry in loopjax's trees, None for what has no counterpart."""
    side, number, layer, leaf = name.split(".")
    leaves = {
        ("linear", "weight"): "kernel",
        ("bn", "weight"): "scale",
        ("bn", "bias"): "bias",
        ("bn", "running_mean"): "mean",
        ("bn", "running_var"): "var",
    }
    ours = leaves.get((layer, leaf))
    return None if ours is None else f"{side}/layers/{number}/{layer}/{ours}"


def our_arrays(named: Any) -> dict[str, np.ndarray]:
    """Tensors by PyTorch name as arrays by our name; kernels transposed."""
    arrays = {}
    for name, tensor in named:
        ours = our_name(name)
        if ours is not None:
            array = tensor.detach().numpy().copy()
            arrays[ours] = array.T if ours.endswith("kernel") else array
    return arrays


def reference_steps(
    n_features: int, dims: tuple[int, ...], residual: bool, batch: int, seed: int
) -> dict[str, np.ndarray]:
    """Everything the parity tests compare, for one network; keys carry a prefix by role."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    model = Network(n_features, dims, residual)
    rows = torch.randn(batch, n_features)
    for block in model.blocks():
        # Statistics and affine parameters away from their defaults, or mistakes would not show.
        nn.init.uniform_(block.bn.weight, 0.5, 1.5)
        nn.init.normal_(block.bn.bias, std=0.3)
        nn.init.normal_(block.bn.running_mean, std=0.2)
        nn.init.uniform_(block.bn.running_var, 0.5, 2.0)
        block.keep = (torch.rand(batch, block.linear.out_features) >= DROPOUT).float()
    found = {f"start:{k}": v for k, v in our_arrays(model.state_dict().items()).items()}
    found["rows"] = rows.numpy()
    found["keep"] = np.concatenate([b.keep.numpy() for b in model.blocks()], axis=1) > 0
    model.eval()
    found["eval_output"] = model(rows).detach().numpy()
    latents = rows
    for layer in model.encoder:
        latents = layer(latents)
    found["eval_latents"] = latents.detach().numpy()
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.999)
    )
    for step in (1, 2):
        optimizer.zero_grad()
        output = model(rows)
        loss = nn.functional.mse_loss(output, rows)
        loss.backward()
        if step == 1:
            found["train_output"] = output.detach().numpy()
            found["loss"] = np.float32(loss.item())
            grads = [(name, p.grad) for name, p in model.named_parameters()]
            found |= {f"grad:{k}": v for k, v in our_arrays(grads).items()}
        optimizer.step()
    found |= {f"end:{k}": v for k, v in our_arrays(model.state_dict().items()).items()}
    return found


def main() -> None:
    """Write one file per network."""
    GOLDENS.mkdir(parents=True, exist_ok=True)
    for name, residual in (("standard", False), ("residual", True)):
        sizes = {"n_features": 12, "dims": (10, 8, 6, 4), "batch": 9, "seed": 7}
        found = reference_steps(**sizes, residual=residual)
        meta = {
            **sizes,
            "residual": residual,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "learning_rate": LEARNING_RATE,
            "weight_decay": WEIGHT_DECAY,
            "dropout": DROPOUT,
        }
        path = GOLDENS / f"autoencoder_{name}.npz"
        np.savez_compressed(path, meta=np.array(json.dumps(meta)), **found)
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
