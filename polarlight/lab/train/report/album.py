"""Pictures of one section, saved beside the page."""

from pathlib import Path

from matplotlib.figure import Figure

from polarlight.lab.report import Block, Grid, Picture, Text, picture


class Album:
    """Figures saved into the folder of the report and collected for a grid."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pictures: list[Picture] = []

    def add(self, new: Figure | None, name: str, title: str, caption: str) -> None:
        """Save a figure; if it is None, remove the file of an earlier report."""
        if new is None:
            (self.folder / f"{name}.png").unlink(missing_ok=True)
        else:
            self.pictures.append(picture(new, self.folder, name, title=title, caption=caption))

    def blocks(self, otherwise: str) -> list[Block]:
        """Return the grid of pictures, or a sentence if there are none."""
        return [Grid(self.pictures)] if self.pictures else [Text(otherwise)]
