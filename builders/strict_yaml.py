"""YAML as people write it: a key that stands twice in a mapping is refused, where YAML itself takes the last."""

from __future__ import annotations

from typing import Any


def strict_load(text: str) -> Any:
    """What a YAML text says, as ``yaml.safe_load`` reads it.

    Raises yaml.YAMLError where it is not YAML, or says a key twice.
    """
    import yaml
    from yaml.composer import ComposerError

    class Strict(yaml.SafeLoader):
        """Looks at mappings as they are written, before merges (``<<``) put further keys into them."""

        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            seen = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if (key.tag, key.value) in seen:
                        raise ComposerError(None, None, f"the key {key.value!r} stands twice", key.start_mark)
                    seen.add((key.tag, key.value))
            return node

    return yaml.load(text, Strict)  # noqa: S506 (it is a safe loader)
