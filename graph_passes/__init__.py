"""The rules that find ternary products in a model, and the one folder that replaces them.

Imported as ``onnx_ternary.graph_passes``. docs/writing_a_rule.md explains how the parts fit.
"""

if __name__ != "onnx_ternary.graph_passes":
    # A second copy under another name would have record types of its own, equal to nothing.
    raise ImportError("import this package as onnx_ternary.graph_passes")
