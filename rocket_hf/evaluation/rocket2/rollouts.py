"""Episodes of a player, many at a time, in rounds: every world follows an order, and the player looks at all of them.

Numbers are the same for any number of worlds and workers, but for those that only rounding tells apart.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from tqdm import tqdm

from rocket_hf.modeling.rocket2_auxiliary import describe_masks
from rocket_hf.sims.vizdoom.maps import make_room
from rocket_hf.sims.vizdoom.world import Event

from ..workers import Worlds
from .environment import Act, Begin, GoalView, Moment, Order, Start
from .players import Player, PlayerOutput, View


@dataclass(frozen=True)
class VisibilityRecord:
    """Where the goal was in the player's view at a step, and where the player took it to be."""

    visible: bool
    point: tuple[float, float]  # (y, x), as shares of the picture; nowhere where it is not visible
    said: PlayerOutput


@dataclass(frozen=True)
class Episode:
    start: Start
    kind: str  # of the target
    event: Event
    steps: int
    glances: tuple[VisibilityRecord, ...]


@dataclass(frozen=True)
class Shot:
    """One picture of a film: what the player saw, and after which goal."""

    moment: Moment
    goal: GoalView
    said: PlayerOutput | None  # None at the end, where nothing is done any more


@dataclass(frozen=True)
class Run:
    """All episodes of one player at one refresh, in the order of their starts."""

    episodes: tuple[Episode, ...]
    seconds: float  # that the player took to look and act
    seconds_in_all: float  # with the worlds

    @property
    def steps_per_second(self) -> float:
        return sum(episode.steps for episode in self.episodes) / self.seconds


OnFilm = Callable[[Episode, Sequence[Shot]], None]


@dataclass
class Place:
    """An episode that goes on."""

    start: Start
    shots: list[Shot] = field(default_factory=list)

    def note(self, moment: Moment, said: PlayerOutput | None) -> None:
        goal = moment.goal if moment.goal is not None else self.shots[-1].goal
        self.shots.append(Shot(moment, goal, said))

    def episode(self) -> Episode:
        last = self.shots[-1].moment
        kind = make_room(self.start.seed).objects[self.start.target].kind
        glances = tuple(glance(shot.moment, shot.said) for shot in self.shots if shot.said is not None)
        return Episode(self.start, kind, last.event, last.steps, glances)


def run_player(
    player: Player,
    worlds: Worlds[Order, Moment],
    starts: Sequence[Start],
    *,
    refresh: int,
    max_steps: int,
    parallel: int = 8,
    on_film: OnFilm | None = None,
    name: str = "episodes",
) -> Run:
    """The goal is shown anew after every `refresh` steps. `player` has at least `parallel` places."""
    waiting = list(reversed(starts))
    places = {number: Place(waiting.pop()) for number in range(min(parallel, len(starts)))}
    orders: dict[int, Order] = {number: Begin(place.start, refresh, max_steps) for number, place in places.items()}
    finished: dict[Start, Episode] = {}
    begin, seconds = time.perf_counter(), 0.0
    with tqdm(total=len(starts), desc=name, unit="", disable=None, leave=False) as bar:
        while orders:
            moments = worlds.run(orders)
            looked = time.perf_counter()
            said = player.act(going_on(places, moments))
            seconds += time.perf_counter() - looked
            orders = {}
            for number, moment in moments.items():
                places[number].note(moment, said.get(number))
                if not moment.ended:
                    orders[number] = Act(said[number].choices)
                    continue
                end(places.pop(number), finished, on_film)
                if waiting:
                    places[number] = Place(waiting.pop())
                    orders[number] = Begin(places[number].start, refresh, max_steps)
            bar.update(len(finished) - bar.n)
    return Run(tuple(finished[start] for start in starts), seconds, time.perf_counter() - begin)


def going_on(places: Mapping[int, Place], moments: Mapping[int, Moment]) -> dict[int, View]:
    return {number: View(places[number].start, moment) for number, moment in moments.items() if not moment.ended}


def end(place: Place, finished: dict[Start, Episode], on_film: OnFilm | None) -> None:
    episode = finished[place.start] = place.episode()
    if on_film is not None:
        on_film(episode, place.shots)


def glance(moment: Moment, said: PlayerOutput) -> VisibilityRecord:
    told = describe_masks(torch.from_numpy(moment.mask))
    y, x = told["point"].tolist()
    return VisibilityRecord(bool(told["visibility"]), (y, x), said)
