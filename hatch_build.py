"""Addresses in the package's metadata, where the repository is published.

    REPOSITORY_URL=ADDRESS python -m hatchling build

The README's links and pictures are relative: an index of packages cannot follow them. With the
address in the environment they lead to the tag of this version, and the metadata names repository,
documentation, changelog and issues. Without it the README stays as it is.
"""

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

RELATIVE = re.compile(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)\s]+)\)")


def absolute(text: str, address: str, tag: str) -> str:
    """Return Markdown whose relative links and pictures lead to a tag of the repository."""

    def led(link: re.Match[str]) -> str:
        picture, words, path = link.groups()
        return f"{picture}[{words}]({address}/{'raw' if picture else 'blob'}/{tag}/{path})"

    return RELATIVE.sub(led, text)


class CustomMetadataHook(MetadataHookInterface):
    """Readme and addresses of the package."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add `readme`, and `urls` if the address is known, to the metadata in place."""
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        address = os.environ.get("REPOSITORY_URL", "").rstrip("/")
        if address:
            tag = f"v{metadata['version']}"
            text = absolute(text, address, tag)
            metadata["urls"] = {
                "Repository": address,
                "Documentation": f"{address}/blob/{tag}/docs/index.md",
                "Changelog": f"{address}/blob/{tag}/CHANGELOG.md",
                "Issues": f"{address}/issues",
            }
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
