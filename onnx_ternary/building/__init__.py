"""From a ternary checkpoint to a model folder for onnxruntime-genai (docs/llm.md)."""
