"""What is done once per model, after its last product: imports, metadata, notes, the body."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator

import onnx_ir as ir

from onnx_ternary._version import __version__
from onnx_ternary.errors import ModelError
from onnx_ternary.model_files.tensors import release
from onnx_ternary.op.nodes import (
    DIGEST_KEY,
    METADATA_OPTIONS,
    METADATA_VERSION,
    ROWS_KEY,
    index_digest,
    node_label,
    read_attributes,
)
from onnx_ternary.options import OptimizeOptions
from onnx_ternary.reports.report import Rewrite
from onnx_ternary.schema import DOMAIN, DOMAIN_VERSION, OP_TYPE

from . import siblings
from .function_body import attach_body
from .model_editor import (
    ModelEditor,
    stored_tensor,
)
from .renamed import Restored
from .storage import unify_storage

# Where onnx_ir keeps a TensorAnnotation, whose scale and zero point are named, not used.
_ANNOTATION = "quant_parameter_tensor_names"


@dataclasses.dataclass(frozen=True, slots=True)
class Replaced:
    """What a `Replacer` did: rows and notes for the report, and whether there is a body."""

    rewrites: tuple[Rewrite, ...]
    notes: tuple[str, ...]
    has_function_body: bool


@dataclasses.dataclass(slots=True)
class Replacements:
    """What was replaced so far.

    Attributes:
        done: row of the report and node of each product, in order.
        roots: what the replaced weights came from, by the value's id.
        notes: names of the nodes each note of a rule is about.
    """

    done: list[tuple[Rewrite, ir.Node]] = dataclasses.field(default_factory=list)
    roots: dict[int, ir.Value] = dataclasses.field(default_factory=dict)
    notes: dict[str, list[str]] = dataclasses.field(default_factory=dict)


def finish(
    editor: ModelEditor, options: OptimizeOptions, found: Replacements, restored: Restored
) -> Replaced:
    """Add imports, metadata and the function body, if anything was replaced or restored.

    Raises:
        ModelError: if the model imports another version of the op's domain.
    """
    model = editor.model
    if not found.done and not restored.nodes:
        return _unchanged(model, options, restored)
    _add_imports(editor, [node for _, node in found.done])
    if found.done:
        model.metadata_props[METADATA_VERSION] = __version__
        model.metadata_props[METADATA_OPTIONS] = json.dumps(options.to_dict(), sort_keys=True)
    notes = [*restored.notes, *_notes(found)]
    if options.function_body and options.storage is None:
        notes += unify_storage(model)
    rewrites = tuple(map(_refreshed, found.done))
    made = {id(node): node for _, node in found.done}
    if options.fuse_siblings:
        for group in siblings.groups(model):
            notes.append(
                "one call of the operator computes "
                + ", ".join(f"'{node_label(node)}'" for node in group)
            )
            made[id(group[0])] = siblings.fuse(editor, group)
            for node in group[1:]:
                made.pop(id(node), None)
    for node in made.values():
        node.metadata_props[DIGEST_KEY] = index_digest(node)
        for value in node.inputs[1:]:
            release(stored_tensor(value))
    notes += _drop_unread_initializers(model)
    old_ir_version = model.ir_version
    reason = attach_body(editor, options)
    if model.ir_version != old_ir_version:
        notes.append(
            f"IR version raised from {old_ir_version} to {model.ir_version}, the first "
            "that can carry a function body"
        )
    if reason:
        notes.append(f"no function body, so the model needs the library to run: {reason}")
    return Replaced(rewrites, tuple(notes), not reason)


def _drop_unread_initializers(model: ir.Model) -> list[str]:
    """Remove what tools that ran before left behind: initializers of the graph nothing reads."""
    graph = model.graph
    annotated = {
        name
        for value in (*graph.inputs, *graph.initializers.values(), *_results(graph))
        for name in value.meta.get(_ANNOTATION, {}).values()
    }
    unread = [
        value
        for name, value in graph.initializers.items()
        if name not in annotated
        and not (value.uses() or value.is_graph_input() or value.is_graph_output())
    ]
    if not unread:
        return []
    names = first_three([f"'{value.name}'" for value in unread])
    num_bytes = sum(value.const_value.nbytes for value in unread if value.const_value is not None)
    for value in unread:
        del graph.initializers[value.name or ""]
    return [f"removed, because nothing reads it: {names} ({num_bytes:,} bytes)"]


def _results(graph: ir.Graph) -> Iterator[ir.Value]:
    for node in graph:
        yield from node.outputs


def _unchanged(model: ir.Model, options: OptimizeOptions, restored: Restored) -> Replaced:
    has_body = any(key[:2] == (DOMAIN, OP_TYPE) for key in model.functions)
    notes = [*restored.notes]
    if options.fuse_siblings and siblings.groups(model):
        notes.append(
            "products that share an input stay apart, because the model was converted "
            "before: convert the original with fuse_siblings"
        )
    return Replaced((), tuple(notes), has_body)


def _add_imports(editor: ModelEditor, nodes: Iterable[ir.Node]) -> None:
    """Import the op's domain in the model, and in the local functions that have new nodes."""
    owners = map(editor.site.function_of, nodes)
    functions = [each for each in dict.fromkeys(owners) if each is not None]
    for imports in (editor.model.opset_imports, *(each.opset_imports for each in functions)):
        imported = imports.setdefault(DOMAIN, DOMAIN_VERSION)
        if imported != DOMAIN_VERSION:
            raise ModelError(
                f"The model imports domain '{DOMAIN}' version {imported}; this program writes "
                f"version {DOMAIN_VERSION}."
            )
        imports.setdefault("", editor.opset)  # for Constant, Transpose and Add


def _notes(found: Replacements) -> list[str]:
    """What is kept, what rules said, and the largest change of a weight."""
    notes = [note for root in found.roots.values() if (note := _kept_note(root))]
    notes += [f"{note}: {first_three(names)}" for note, names in found.notes.items()]
    rows = (row for row, _ in found.done)
    most = max(rows, key=lambda row: row.max_relative_change, default=None)
    if most is not None and most.max_relative_change > 0:
        notes.append(
            f"the largest change of a weight is {most.max_relative_change:.3g} of its scale: "
            f"'{most.weight}' of '{most.node}'"
        )
    return notes


def _refreshed(done: tuple[Rewrite, ir.Node]) -> Rewrite:
    """The row of a node whose index may have been stored another way since."""
    row, node = done
    attributes = read_attributes(node)
    return dataclasses.replace(
        row,
        storage=attributes.storage,
        alphabet=attributes.alphabet,
        # Not the bias of a product, nor what gives a gather its type.
        bytes_after=sum(
            stored_tensor(value).nbytes for value in (*node.inputs[1:-1], *_rows(node))
        ),
    )


def _rows(node: ir.Node) -> list[ir.Value]:
    """The scale of the weight's rows, if a Mul in front of a product brings it in."""
    scaling = None if node.inputs[0] is None else node.inputs[0].producer()
    if scaling is None or ROWS_KEY not in scaling.metadata_props:
        return []
    return [value for value in scaling.inputs[1:] if value is not None]


def _kept_note(root: ir.Value) -> str | None:
    """Why a weight is still in the model, if it is."""
    if root.is_graph_output():
        return f"weight '{root.name}' kept as well: it is a graph output"
    users = [use.node for use in root.uses()]
    if not users:
        return None
    names = first_three([f"{node.op_type} '{node_label(node)}'" for node in users])
    return f"weight '{root.name}' kept as well: used by {names}"


def first_three(names: list[str]) -> str:
    """Names with commas, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
