"""What the pickle inside a checkpoint may name, judged from its opcodes before torch runs them.

torch's reader for weights runs no foreign code, but it makes what the pickle asks for: a bytearray
of any size, tensors on other devices, sparse and quantised ones. Our checkpoints need none of it.
"""

from __future__ import annotations

import pickle
import pickletools
import re

ALLOWED = re.compile(r"torch \w+Storage|torch\._utils _rebuild_tensor_v2|collections OrderedDict")
PROTOCOL = 2
IMPORTS = ("GLOBAL", "STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4")


def judge_pickle(content: bytes) -> None:
    """Raise pickle.UnpicklingError where `content` names anything but tensors and plain values.

    So it does where the protocol is not torch's; ValueError where it is no pickle at all.
    """
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name == "PROTO" and argument != PROTOCOL:
            raise pickle.UnpicklingError(f"pickle protocol {argument}")
        if opcode.name in IMPORTS and not ALLOWED.fullmatch(str(argument)):
            raise pickle.UnpicklingError(f"the pickle names {argument!r}")
