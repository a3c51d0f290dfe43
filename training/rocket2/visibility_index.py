"""Where each object of each room can be seen, which is where goals can come from."""

import torch
from torch import Tensor

from .dataset import Episode, RecordedRooms


class VisibilityIndex:
    def __init__(self, data: RecordedRooms):
        visible = data.visible()
        self.rows: dict[tuple[int, int], Tensor] = {}  # by room and number of the object
        self.of_views: dict[Episode, list[Tensor]] = {}
        for episode in data.episodes:
            frames = torch.arange(episode.frames.start, episode.frames.stop)
            numbers = visible[frames].any(dim=0).nonzero().flatten().tolist()
            there = {number: frames[visible[frames, number]] for number in numbers}
            for number, rows in there.items():
                known = self.seen(episode.room, number)
                self.rows[episode.room, number] = torch.cat([known, rows])
            if not episode.target:
                pairs = [torch.stack([torch.full_like(rows, number), rows], dim=1) for number, rows in there.items()]
                self.of_views[episode] = pairs

    def seen(self, room: int, number: int) -> Tensor:
        """Rows of the recorded rooms, in any episode."""
        return self.rows.get((room, number), torch.empty(0, dtype=torch.long))

    def pairs(self, views: Episode) -> list[Tensor]:
        """What can be shown in the views of a room, for each object that is in one of them: (n, 2), its number and the
        row. Nothing of an episode that has a target."""
        return self.of_views.get(views, [])
