"""The families that are tested, for people to read. Nothing is decided by this list: `projections` reads every model's
own modules, and a family that is not here works when its layers are under known names. The tests compare each entry
with what is found in a model of the family.
"""

from __future__ import annotations

from dataclasses import dataclass

ATTENTION = ("q", "k", "v", "o")
UNGATED = (*ATTENTION, "up", "down")
ALL = (*ATTENTION, "gate", "up", "down")

QKV = "q, k, v in one tensor"
INTERLEAVED = "q, k, v interleaved in one tensor"
GATE_UP = "gate, up in one tensor"
TRANSPOSED = "stored in x out"

EXPERTS = "mixture of experts: attention only"
HYBRID = "hybrid: layers with attention, and dense feed-forward layers"
SEES = "sees too: text part only"


@dataclass(frozen=True)
class Family:
    model_type: str  # as config.json has it
    known_as: str
    projections: tuple[str, ...] = ALL
    stored: tuple[str, ...] = ("",)  # ways in which its models keep them; "" is a tensor for each
    note: str = ""


FAMILIES = (
    Family("llama", "Llama 2 and 3, TinyLlama, SmolLM, Yi, InternLM 3"),
    Family("mistral", "Mistral 7B, Nemo"),
    Family("ministral3", "Ministral 3"),
    Family("qwen2", "Qwen 1.5, 2 and 2.5"),
    Family("qwen3", "Qwen 3"),
    Family("gemma", "Gemma"),
    Family("gemma2", "Gemma 2"),
    Family("gemma3_text", "Gemma 3 1B and 270M"),
    Family("gemma3", "Gemma 3 4B to 27B", note=SEES),
    Family("qwen2_vl", "Qwen 2 VL", note=SEES),
    Family("qwen2_5_vl", "Qwen 2.5 VL", note=SEES),
    Family("smollm3", "SmolLM 3"),
    Family("granite", "Granite 3"),
    Family("olmo", "OLMo"),
    Family("olmo2", "OLMo 2"),
    Family("olmo3", "OLMo 3"),
    Family("stablelm", "StableLM"),
    Family("cohere", "Command R"),
    Family("cohere2", "Command R7B, Command A"),
    Family("seed_oss", "Seed OSS"),
    Family("ernie4_5", "ERNIE 4.5"),
    Family("exaone4", "EXAONE 4"),
    Family("phi3", "Phi-3, Phi-3.5, Phi-4", stored=(f"{QKV}; {GATE_UP}",)),
    Family("glm", "GLM 4 9B", stored=(GATE_UP,)),
    Family("glm4", "GLM 4 0414", stored=(GATE_UP,)),
    Family("phi", "Phi-1, Phi-1.5, Phi-2", UNGATED),
    Family("opt", "OPT", UNGATED),
    Family("gptj", "GPT-J", UNGATED),
    Family("gpt_neo", "GPT-Neo", UNGATED),
    Family("starcoder2", "StarCoder 2", UNGATED),
    Family("apertus", "Apertus", UNGATED),
    Family("arcee", "AFM", UNGATED),
    Family("nemotron", "Nemotron, Minitron", UNGATED),
    Family("gpt2", "GPT-2, DistilGPT-2", UNGATED, (f"{QKV}; {TRANSPOSED}",)),
    Family("openai-gpt", "GPT", UNGATED, (f"{QKV}; {TRANSPOSED}",)),
    Family("mpt", "MPT", UNGATED, (QKV,)),
    Family("gpt_neox", "Pythia, GPT-NeoX, Dolly", UNGATED, (INTERLEAVED,)),
    Family("bloom", "BLOOM", UNGATED, (INTERLEAVED,)),
    Family("persimmon", "Persimmon", UNGATED, (INTERLEAVED,)),
    Family("falcon", "Falcon 7B, 40B, RW", UNGATED, (QKV, INTERLEAVED)),
    Family("gpt_bigcode", "StarCoder, SantaCoder", UNGATED, (QKV, INTERLEAVED)),
    Family("codegen", "CodeGen", UNGATED, (INTERLEAVED,)),
    Family("mixtral", "Mixtral", ATTENTION, note=EXPERTS),
    Family("qwen2_moe", "Qwen 1.5 MoE, Qwen 2 MoE", ATTENTION, note=EXPERTS),
    Family("qwen3_moe", "Qwen 3 MoE", ATTENTION, note=EXPERTS),
    Family("olmoe", "OLMoE", ATTENTION, note=EXPERTS),
    Family("granitemoe", "Granite 3 MoE", ATTENTION, note=EXPERTS),
    Family("phimoe", "Phi-3.5 MoE", ATTENTION, note=EXPERTS),
    Family("lfm2", "LFM 2", note=HYBRID),
    Family("olmo_hybrid", "OLMo Hybrid", note=HYBRID),
    Family("jamba", "Jamba", note=HYBRID),
)

REFUSED = (
    (
        "quantised targets, and sources that are neither GGUF, FP8, compressed-tensors, GPTQ, AWQ nor bitsandbytes",
        "name the model they were made from",
    ),
    ("encoders and encoder-decoders", "choose a decoder"),
    ("pure state-space and recurrent models", "choose a model with attention"),
    ("models with their own code", "read it, then set trust_remote_code: true under the model in the recipe"),
)
