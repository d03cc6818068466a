"""Devices that people rent or own: what they can do at most, and how much memory they have, by their makers' word."""

from __future__ import annotations

from dataclasses import dataclass

UTILISATION = 0.4
"""Share of a device's peak that is counted on. Published runs of Stable Diffusion in batches of 16 lie between 0.30 and
0.39 of an A100 (diffusers' documentation of torch 2.0), compiled SDXL at 0.53 (pytorch.org, accelerating generative AI
3); smaller batches and code that is not compiled reach less.
"""


@dataclass(frozen=True, slots=True)
class Device:
    """One kind of device. Peaks are dense TFLOP/s: without sparsity, with sums in float32."""

    name: str
    half: float
    """float16, and bfloat16 where it has that."""
    single: float
    """float32 outside the tensor cores, which is what torch uses for it unless it is told otherwise."""
    gigabytes: float
    """Memory, 10^9 bytes; of the smallest model of that name."""
    bfloat16: bool = True

    def peak(self, dtype: str) -> float | None:
        """Dense TFLOP/s in that arithmetic; None where it has none."""
        if dtype == "float32":
            return self.single
        return None if dtype == "bfloat16" and not self.bfloat16 else self.half


DEVICES = (
    Device("H100/H200", 989.0, 67.0, 80.0),  # NVIDIA's H100 SXM and H200 SXM datasheets: 1,979 with sparsity; 67
    Device("A100", 312.0, 19.5, 40.0),  # NVIDIA's A100 datasheet
    Device("L40S", 362.0, 91.6, 48.0),  # NVIDIA's L40S datasheet: 733 with sparsity
    Device("RTX 4090", 165.2, 82.6, 24.0),  # NVIDIA's Ada GPU architecture, appendix A: FP16 with FP32 accumulate
    Device("RTX 3090", 71.0, 35.6, 24.0),  # NVIDIA's Ampere GA102 whitepaper: FP16 with FP32 accumulate
    Device("L4", 121.0, 30.3, 24.0),  # NVIDIA's L4 datasheet: 242 with sparsity
    Device("T4", 65.0, 8.1, 16.0, bfloat16=False),  # NVIDIA's T4 datasheet
)
"""The fastest first; each number is from the source behind it."""
