"""The recipe's section `ls_merge`: merging in a learned latent space of weights (docs/methods.md)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tmerge_tui.recipe.section import Section, option

LsControl = Literal["reconstructed", "random_source", "permuted_chunks", "noise", "truncated"]
LS_CONTROLS: tuple[LsControl, ...] = ("reconstructed", "random_source", "permuted_chunks", "noise", "truncated")
Auto = Literal["auto"]


class LsMerge(Section):
    """Chunks of both models' weights in one autoencoder, mixed in its latent space; only with method: ls_merge."""

    projections: tuple[Literal["q", "k", "v", "o", "gate", "up", "down"], ...] = option(
        ("q", "k", "v", "o", "gate", "up", "down"), "projections whose weights are mixed; all else stays the target's",
        "plans", expert=True, min_length=1,
    )  # fmt: skip
    chunk: Annotated[int, Field(ge=4, le=65536)] | Auto = option(
        "auto", "numbers of a chunk; auto: 64, 144 or 640 by the size of the target", "plans", unit="numbers",
        expert=True,
    )  # fmt: skip
    ratio: float = option(1.0, "numbers of a chunk over those of its latent", "plans", expert=True, ge=0.25, le=64)
    squash: bool = option(True, "sign(w) log1p|w| of the scaled weights, whose tails are heavy", "plans", expert=True)
    width: Annotated[int, Field(ge=8, multiple_of=8)] | Auto = option(
        "auto", "width of encoder and decoder; auto: 128, 256 or 768 by the size of the target", "plans", expert=True
    )
    blocks: int = option(4, "blocks of the encoder, and of the decoder", "plans", expert=True, ge=1, le=48)
    window: int = option(
        64, "chunks of one matrix that see each other", "plans", unit="chunks", expert=True, ge=2, le=4096
    )
    epochs: float = option(
        200.0, "passes over all chunks of both models with reconstruction alone", "plans", expert=True, gt=0
    )
    kl_epochs: float = option(50.0, "passes after that with beta KL beside it", "plans", expert=True, ge=0)
    beta: float = option(3e-6, "of the KL divergence of a latent number, beside the error of a weight", "plans",
                         expert=True, ge=0)  # fmt: skip
    learning_rate: float = option(5e-4, "peak of the schedule of the autoencoder", "plans", expert=True, gt=0)
    batch_size: int = option(16, "windows in one step", "plans", expert=True, ge=1)
    bf16: bool = option(False, "the autoencoder's passes in bfloat16 while it is trained", "plans", expert=True)
    checkpoints: int = option(
        4, "moments of each of both phases that are measured on validation text, and from which training resumes",
        "plans", expert=True, ge=1,
    )  # fmt: skip
    depth: Literal["nearest", "first"] = option(
        "nearest",
        "source layer of a target layer: the one at the same share of the depth, or the one of the same number, as far "
        "as both go",
        "layers",
        expert=True,
    )
    rows: Literal["resample", "barycentric"] = option(
        "resample",
        "how chunks of one matrix become as many as the other has: linearly along their order, or means by an optimal "
        "plan between both",
        "layers",
        expert=True,
    )
    bures: bool = option(
        True, "carry the source's latents by the Gaussian (Bures) map onto the target's mean and covariance", "layers",
        expert=True,
    )  # fmt: skip
    row_norms: bool = option(True, "give each decoded row the norm of the target's", "outputs", expert=True)
    controls: tuple[LsControl, ...] = option(
        LS_CONTROLS,
        "placebos: the target through the autoencoder alone, a random source, chunks permuted inside a layer, noise of "
        "the same norm, weights truncated in rank to the autoencoder's error",
        "nothing",
        expert=True,
    )

    @model_validator(mode="after")
    def _fits(self) -> LsMerge:
        if isinstance(self.chunk, int) and self.chunk / self.ratio < 1:
            raise ValueError(f"ratio: a chunk of {self.chunk} numbers cannot become less than one latent number")
        return self
