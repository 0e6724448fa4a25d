"""How the indices of a whole model are stored, where one function body has to serve all of them."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from onnx_ternary.index import Index, build_index, decode_index
from onnx_ternary.index.levels import TernaryWeight
from onnx_ternary.op.nodes import (
    DIGEST_KEY,
    check_digest,
    gather_nodes,
    index_digest,
    node_label,
    op_nodes,
    read_attributes,
)

from .model_editor import (
    op_attributes,
    operator_attributes,
    set_array,
    stored_array,
)


def unify_storage(model: ir.Model) -> list[str]:
    """Store binary weights as ternary ones where a model has both.

    A model can carry one function body only, and bodies differ by storage and, where the
    storage depends on it, by alphabet.
    """
    nodes = [(node, read_attributes(node)) for node in op_nodes(model)]
    kinds = {
        (each.storage, each.alphabet if each.storage in ("1bit", "planes") else "")
        for _, each in nodes
    }
    if len(kinds) < 2:
        return []
    rebuilt: dict[int, Index] = {}
    for node, old in nodes:
        if old.storage != "1bit" and (old.storage != "planes" or old.alphabet == "ternary"):
            continue
        codes, aux, scale = (stored_array(value) for value in node.inputs[1:4])
        key = id(node.inputs[1])
        if key not in rebuilt:
            check_digest(node)
            binary = old.storage == "1bit"
            levels = TernaryWeight(
                levels=decode_index(old, codes, aux),
                scale=scale,
                group_size=old.group_size,
                alphabet=old.alphabet if binary else "ternary",
                max_relative_change=0.0,
            )
            rebuilt[key] = build_index(
                levels,
                index_format=old.index_format,
                storage="2bit" if binary else "planes",
                block_width=old.block_width or None,
                algorithm=None if binary else old.algorithm,
            )
        index = rebuilt[key]
        set_array(node.inputs[1], index.codes)
        if index.aux.size > 1:  # the one zero of packed indices is everybody's
            set_array(node.inputs[2], index.aux)
        new = dataclasses.replace(
            old, storage=index.attributes.storage, alphabet=index.attributes.alphabet
        )
        for attribute in op_attributes(new):
            node.attributes[attribute.name] = attribute
        node.metadata_props[DIGEST_KEY] = index_digest(node)
    for node in gather_nodes(model):
        if (made := rebuilt.get(id(node.inputs[1]))) is not None:
            new = dataclasses.replace(
                read_attributes(node),
                storage=made.attributes.storage,
                alphabet=made.attributes.alphabet,
            )
            for attribute in operator_attributes(new.to_gather_dict()):
                node.attributes[attribute.name] = attribute
            node.metadata_props[DIGEST_KEY] = index_digest(node)
    names = ", ".join(
        f"'{node_label(node)}'" for node, old in nodes if id(node.inputs[1]) in rebuilt
    )
    return [
        f"binary weights of {names} are stored as ternary ones, because one function body has "
        "to serve the whole model; without a body they take half the space"
    ]
