"""Compiled programs (HLO) as data: XLA's own serialized form, read by protobuf.

Of XLA's messages (``xla/service/hlo.proto`` and ``xla/xla_data.proto``) only the fields that are
used here are declared. Their numbers never change, which is what the format promises; names and
text of a program promise nothing.
"""

from __future__ import annotations

import functools
from typing import Any

# Message -> field -> (number, type); a name in capitals is a message of this table, and a star
# stands for any number of values.
_MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    "Shape": {
        "element_type": (2, "int64"),
        "dimensions": (3, "int64*"),
        "tuple_shapes": (4, "Shape*"),
    },
    "Literal": {"s32s": (4, "int32*"), "s64s": (5, "int64*"), "u32s": (6, "uint32*")},
    "WindowDimension": {
        "size": (1, "int64"),
        "stride": (2, "int64"),
        "padding_low": (3, "int64"),
        "padding_high": (4, "int64"),
        "window_dilation": (5, "int64"),
        "base_dilation": (6, "int64"),
    },
    "Window": {"dimensions": (1, "WindowDimension*")},
    "ConvolutionNumbers": {
        "input_batch": (7, "int64"),
        "input_feature": (8, "int64"),
        "input_spatial": (11, "int64*"),
        "kernel_output_feature": (4, "int64"),
        "output_spatial": (12, "int64*"),
    },
    "DotNumbers": {"lhs_contracting": (1, "int64*")},
    "Instruction": {
        "name": (1, "string"),
        "opcode": (2, "string"),
        "shape": (3, "Shape"),
        "literal": (8, "Literal"),
        "window": (15, "Window"),
        "convolution_numbers": (16, "ConvolutionNumbers"),
        "custom_call_target": (28, "string"),
        "dot_numbers": (30, "DotNumbers"),
        "id": (35, "int64"),
        "operand_ids": (36, "int64*"),
        "called_computation_ids": (38, "int64*"),
        "backend_config": (43, "bytes"),
        "feature_groups": (50, "int64"),
        "batch_groups": (58, "int64"),
        "comparison_direction": (63, "string"),
    },
    "Computation": {
        "name": (1, "string"),
        "instructions": (2, "Instruction*"),
        "id": (5, "int64"),
        "root_id": (6, "int64"),
    },
    "Module": {
        "name": (1, "string"),
        "computations": (3, "Computation*"),
        "entry_computation_id": (6, "int64"),
    },
}

# XLA's PrimitiveType -> bits of an element.
_BITS = {1: 8, 2: 8, 3: 16, 4: 32, 5: 64, 6: 8, 7: 16, 8: 32, 9: 64, 10: 16, 11: 32, 12: 64}
_BITS |= {15: 64, 16: 16, 18: 128, 19: 8, 20: 8, 21: 4, 22: 4, 23: 8, 24: 8, 25: 8, 28: 8, 29: 8}
_TUPLE = 13


def module_of(compiled: Any) -> Any:
    """The program of a ``jax.stages.Compiled``, a message ``Module``."""
    (program,) = compiled.runtime_executable().hlo_modules()
    return message("Module").FromString(program.as_serialized_hlo_module_proto())


def message(name: str) -> Any:
    """The class of a message."""
    return _classes()[name]


def size_in_bytes(shape: Any) -> int:
    """Bytes of an array, or of all arrays of a tuple; tokens and the like have none.

    Args:
      shape: a message ``Shape``.
    """
    if shape.element_type == _TUPLE:
        return sum(map(size_in_bytes, shape.tuple_shapes))
    count = 1
    for size in shape.dimensions:
        count *= size
    return count * _BITS.get(shape.element_type, 0) // 8


@functools.cache
def _classes() -> dict[str, Any]:
    # Only here: models are trained and measured without it.
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="hlo", package="bsq_jax", syntax="proto3")
    for name, fields in _MESSAGES.items():
        made = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            repeated, kind = kind.endswith("*"), kind.removesuffix("*")
            label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            one = made.field.add(name=field, number=number, label=label)
            if kind in _MESSAGES:
                one.type, one.type_name = kinds.TYPE_MESSAGE, f".bsq_jax.{kind}"
            else:
                one.type = getattr(kinds, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    get = pool.FindMessageTypeByName
    return {name: message_factory.GetMessageClass(get(f"bsq_jax.{name}")) for name in _MESSAGES}
