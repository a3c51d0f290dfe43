"""Index of the frames that show each object of each room. Goal images are drawn from these frames."""

import torch
from torch import Tensor

from .dataset import RecordedEpisode, RecordedRooms


class VisibilityIndex:
    """Frames that show each object, by room and object id."""

    def __init__(self, data: RecordedRooms):
        visibility = data.object_visibility()
        self.rows: dict[tuple[int, int], Tensor] = {}  # by room and object id
        self.goals_in_views: dict[RecordedEpisode, list[Tensor]] = {}
        for episode in data.episodes:
            frames = torch.arange(episode.frames.start, episode.frames.stop)
            object_ids = visibility[frames].any(dim=0).nonzero().flatten().tolist()
            visible_in = {object_id: frames[visibility[frames, object_id]] for object_id in object_ids}
            for object_id, rows in visible_in.items():
                known = self.rows_showing(episode.room, object_id)
                self.rows[episode.room, object_id] = torch.cat([known, rows])
            if not episode.target:
                self.goals_in_views[episode] = [
                    torch.stack([torch.full_like(rows, object_id), rows], dim=1)
                    for object_id, rows in visible_in.items()
                ]

    def rows_showing(self, room: int, object_id: int) -> Tensor:
        """Return the rows of the recorded rooms, in any episode, that show an object of a room."""
        return self.rows.get((room, object_id), torch.empty(0, dtype=torch.long))

    def goals_of_views(self, views: RecordedEpisode) -> list[Tensor]:
        """Return the possible goals in a collection of views, one tensor (n, 2) of object id and row per object.

        The list is empty for demonstrations.
        """
        return self.goals_in_views.get(views, [])
